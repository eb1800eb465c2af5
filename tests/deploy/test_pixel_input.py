"""The normalisation in the graph of an INT8 model: pixels in, the same scores to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_stages
import torch
from scripts import script_path

from ptq2themoon.data import Preprocessing
from ptq2themoon.deploy.pixel_input import with_pixels
from ptq2themoon.vocabulary.errors import UserError


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chain = tiny_stages.chain(tmp_path_factory.getbasetemp())
    (file,) = (path for path in tiny_stages.outputs("deploy") if path.endswith(".onnx"))
    return chain / file


def scores(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.mark.parametrize("count", [1, 3])
def test_scores_of_pixels_are_those_of_normalised_images(int8: Path, count: int) -> None:
    before = onnx.load(int8)
    content = before.SerializeToString()
    after = with_pixels(before, "int8.onnx")
    assert before.SerializeToString() == content
    onnx.checker.check_model(after, full_check=True)
    about = {entry.key: entry.value for entry in before.metadata_props}
    preprocessing = Preprocessing.model_validate(json.loads(about["preprocessing"]))
    channels, height, width = preprocessing.input_size
    shape = (count, height, width, channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    normalised = preprocessing.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_array_equal(scores(after, pixels), scores(before, normalised))
    assert {entry.key: entry.value for entry in after.metadata_props} == {
        **about,
        "normalised": "in the graph",
    }


def script(*words: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, script_path("pixels.py"), *map(str, words)]
    return subprocess.run(call, capture_output=True, text=True, check=False)


def test_the_script_writes_it_and_refuses_a_second_time(int8: Path, tmp_path: Path) -> None:
    out = tmp_path / "pixels.onnx"
    done = script("--int8", int8, "--out", out)
    assert done.returncode == 0, done.stderr
    (image,) = onnx.load(out).graph.input
    assert image.name == "pixels"
    done = script("--int8", out, "--out", tmp_path / "again.onnx")
    assert (done.returncode, done.stderr.strip()) == (2, f"error: {out}: takes pixels already")
    assert not (tmp_path / "again.onnx").exists()


@pytest.mark.parametrize("stated", [None, "{", "7"])
def test_a_file_that_does_not_state_its_preprocessing_is_refused(int8: Path, stated: str | None) -> None:
    model = onnx.load(int8)
    about = {} if stated is None else {"preprocessing": stated}
    onnx.helper.set_model_props(model, about)
    with pytest.raises(UserError, match=r"int8\.onnx: does not state its preprocessing"):
        with_pixels(model, "int8.onnx")
