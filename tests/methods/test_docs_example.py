"""The example of docs/methods.md works as it stands: its method, its recipe and its test."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tiny_methods import RECIPES, Case

from ptq2themoon import methods
from ptq2themoon.methods import method_names
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipe_language import MethodCall
from ptq2themoon.vocabulary.recipes import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
NAME = "clipping"


def block(kind: str) -> str:
    """The one fenced block of a kind, such as `python method`, with the file's name in its first line."""
    ((indent, text),) = re.findall(rf"^( *)```{kind}\n(.*?)^ *```$", PAGE, flags=re.M | re.S)
    return textwrap.dedent(text) if indent else str(text)


def file_of(text: str) -> str:
    """What the first line of a block says."""
    return text.partition("\n")[0].removeprefix("# ")


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Recipes, with the example's, and its method where the package finds it."""
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / f"{NAME}.py").write_text(block("python method"), encoding="utf-8")
    recipes = tmp_path / "recipes"
    shutil.copytree(RECIPES, recipes)
    (recipes / f"{NAME}.yaml").write_text(block("yaml recipe"), encoding="utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    method_names.cache_clear()
    importlib.invalidate_caches()
    yield recipes
    sys.modules.pop(f"{methods.__name__}.{NAME}", None)
    vars(methods).pop(NAME, None)
    monkeypatch.undo()
    method_names.cache_clear()


def test_files_have_the_names_that_the_text_says() -> None:
    assert file_of(block("python method")) == f"src/ptq2themoon/methods/{NAME}.py"
    assert file_of(block("yaml recipe")) == f"recipes/{NAME}.yaml"
    assert file_of(block("python test")) == f"tests/methods/test_{NAME}.py"
    assert NAME in yaml.safe_load(block("yaml params"))["recipes"]


def test_the_method_is_short() -> None:
    code = block("python method").partition("class ")[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_the_example_quantizes_a_model(added: Path) -> None:
    assert NAME in method_names()
    case = Case.of_family("vit")
    model = case.quantized(load_recipe(added / f"{NAME}.yaml"))
    slots = list(model.slots())
    assert slots
    plain = dict(case.quantized(load_recipe(added / "papers.yaml")).slots())
    assert {slot for slot, tensor in slots if tensor.quantizer != plain[slot].quantizer} == {
        slot for slot, tensor in slots if not tensor.is_parameter
    }
    assert not model.rewrite
    assert not model.changes


def test_its_own_test_passes(added: Path) -> None:
    path = added.parent / "example.py"
    path.write_text(block("python test"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_without_the_file_the_recipe_is_refused(tmp_path: Path) -> None:
    shutil.copytree(RECIPES, tmp_path / "recipes")
    path = tmp_path / "recipes" / f"{NAME}.yaml"
    path.write_text(block("yaml recipe"), encoding="utf-8")
    with pytest.raises(UserError, match=rf"methods\[0\]\.name: unknown method '{NAME}'"):
        load_recipe(path)


def test_a_method_that_trains_is_named_with_its_preset() -> None:
    call = {"name": "qdrop", "loss": "aph"}
    assert methods.labelled(MethodCall(**call)) == "qdrop (quick)"
    assert methods.labelled(MethodCall(**call, preset="paper")) == "qdrop (paper)"
    assert methods.labelled(MethodCall(name="gptq")) == "gptq"


def test_every_method_is_in_the_table() -> None:
    section = PAGE.partition("## Those that are there")[2].partition("\n## ")[0]
    table = section.partition("###")[0]
    assert re.findall(r"^\| `(\w+)`", table, flags=re.M) == list(method_names())
    for name in method_names():
        for setting in methods.method_class(name).Settings.model_fields:
            assert f"`{setting}" in section, (name, setting)
