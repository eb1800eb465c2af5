"""Write the JSON Schemas of params.yaml and of a recipe from the models that check them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from ptq2themoon.stage import run
from ptq2themoon.vocabulary.parameters import Params
from ptq2themoon.vocabulary.recipe_language import RecipeFile
from ptq2themoon.vocabulary.records import write_json

SCHEMAS: dict[str, type[BaseModel]] = {"params.schema.json": Params, "recipe.schema.json": RecipeFile}


class Plain(GenerateJsonSchema):
    """Without titles that repeat the names of the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema(model: type[BaseModel]) -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Written by workflow/scripts/tools/schemas.py; edit the model instead.",
        **model.model_json_schema(schema_generator=Plain),
    }


def write(folder: Path = Path("workflow/schemas")) -> None:
    """Write the JSON Schemas of params.yaml and of a recipe into a folder."""
    for name, model in SCHEMAS.items():
        write_json(folder / name, schema(model))


if __name__ == "__main__":
    run(lambda: tyro.cli(write))
