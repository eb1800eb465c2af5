"""The snippet of docs/int8.md classifies a picture with the file that deploy wrote."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tiny_stages
from PIL import Image

PAGE = (Path(__file__).parents[2] / "docs/int8.md").read_text(encoding="utf-8")


def test_a_picture_is_classified_as_the_page_says(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = tiny_stages.chain(tmp_path_factory.getbasetemp())
    (file,) = (path for path in tiny_stages.outputs("deploy") if path.endswith(".onnx"))
    (tmp_path / "int8.onnx").write_bytes((chain / file).read_bytes())
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    (snippet,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "picture.png" in code)
    (tmp_path / "classify.py").write_text(snippet)
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path("classify.py")
    session = onnxruntime.InferenceSession("int8.onnx", providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    facts = json.loads(about["preprocessing"])
    image = (pixels[None, None] / 255 - facts["mean"][0]) / facts["std"][0]
    scores = session.run(None, {session.get_inputs()[0].name: image.astype(np.float32)})[0]
    assert out.getvalue().strip() == str(scores.argmax())
    assert (about["mode"], about["bits"]) == ("faithful", "w8a8")
