"""What a folder of timm's says of its model is read with care: anybody may have written it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptq2themoon.vocabulary.cost_model import size_of
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_source import local_config, source_problem

WRONG: list[tuple[Any, str]] = [
    ("", "config.json: not readable as JSON ("),
    ("[1]", "config.json: must hold an object, and so must its model_args"),
    ("[" * 100_000, "(lists and objects lie more than 100 deep)"),
    ('{"a":' * 200 + "1" + "}" * 200, "(lists and objects lie more than 100 deep)"),
    ('{"num_classes": ' + "9" * 5_000 + "}", "config.json: not readable as JSON ("),
    (" " * 1_000_001, "(more than 1000000 bytes)"),
    ({"model_args": [1]}, "and so must its model_args"),
    ({"model_args": {"depth": 10**9}}, "config.json: model_args.depth: 1000000000 is too large; at most 200"),
    ({"num_classes": 10**400}, "config.json: num_classes: 1000"),
    ({"pretrained_cfg": {"input_size": [1, 28, 10**6]}}, "pretrained_cfg.input_size: 1000000 is too large"),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_config_that_no_model_has_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(bytes(8))
    with pytest.raises(UserError) as error:
        local_config(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    source = f"local-dir:{tmp_path}"
    assert source_problem(source) == str(error.value)
    params = SimpleNamespace(models={"mine": SimpleNamespace(source=source)})
    assert size_of(params, "mine").gmacs >= 0  # jobs are planned all the same, and then refused


def test_a_pipe_among_the_weights_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    os.mkfifo(tmp_path / "model.safetensors")
    assert "model.safetensors: is a pipe or a device" in str(source_problem(f"local-dir:{tmp_path}"))
