"""`ptq2themoon` as a new user calls it: refusals in one line, and an ONNX file to INT8 in one command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_stages
import yaml
from click.testing import CliRunner
from onnx import helper, numpy_helper
from tiny_images import picture

from ptq2themoon.console import running_jobs
from ptq2themoon.console.commands import main, ship
from ptq2themoon.console.machine_check import findings
from ptq2themoon.console.running_jobs import Progress
from ptq2themoon.graph.editing.model_files import write_model
from ptq2themoon.vocabulary import onnx_data
from ptq2themoon.vocabulary.parameters import load_params

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty pictures without labels, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(40):
        picture(index).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.onnx", "--images", "photos"], "error: model.onnx: no such file"),
        (["photos.onnx", "--images", "photos"], "give --mean and --std, for ImageNet's --mean 0.485,"),
        (["vit_tiny_patch16_224", "--images", "none"], "error: none: no folder of images"),
        (["vit_tiny_patch16_224", "--images", "empty"], "error: empty: no images"),
        (["vit_tinny_patch16_224", "--images", "photos"], "did you mean 'vit_tiny_patch16_224'?"),
        (["vit_tiny_patch16_224", "--images", "photos", "--recipe", "shipp"], "did you mean 'ship'?"),
        (["vit_tiny_patch16_224", "--images", "photos", "--bits", "8"], "bits"),
        (["vit_tiny_patch16_224", "--images", "photos", "--mean", "a,b"], "give numbers with commas"),
    ],
)
def test_refusals(photos: Path, words: list[str], said: str) -> None:
    (photos.parent / "photos.onnx").touch()
    (photos.parent / "empty").mkdir()
    before = set(photos.parent.iterdir())
    for command in ("init", "quantize"):
        ended = CliRunner().invoke(main, [command, *words])
        assert ended.exit_code == 2
        assert said in ended.output
        assert "Traceback" not in ended.output
    assert set(photos.parent.iterdir()) == before


def test_init_writes_parameters_that_the_workflow_takes(photos: Path) -> None:
    ended = CliRunner().invoke(
        main, ["init", "vit_tiny_patch16_224", "--images", "photos", "--classes", "3", "-o", "mine.yaml"]
    )
    assert ended.exit_code == 0, ended.output
    params = load_params(Path("mine.yaml"), RECIPES)
    assert params.models["vit_tiny_patch16_224"].arguments == {"num_classes": 3}
    assert (params.calibration.images, params.evaluation.images, params.errors.images) == (40, 40, 40)
    assert yaml.safe_load(Path("mine.yaml").read_text())["recipes"] == ["ship"]
    again = CliRunner().invoke(
        main, ["init", "vit_tiny_patch16_224", "--images", "photos", "-o", "mine.yaml"]
    )
    assert (again.exit_code, again.output) == (
        2,
        "error: mine.yaml: is there already; give another name with -o\n",
    )


def test_doctor_names_what_it_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    found = dict(findings())
    assert "does not answer" in found["model hub"]
    assert "onnxruntime" in found["packages"]
    assert "GB" in found["memory"]


@pytest.mark.slow
def test_an_onnx_file_and_forty_photos_become_int8_in_one_command(
    tmp_path_factory: pytest.TempPathFactory, photos: Path
) -> None:
    chain = tiny_stages.chain(tmp_path_factory.getbasetemp())
    shutil.copy(chain / "out/model.onnx", "tiny.onnx")
    words = [
        "quantize",
        "tiny.onnx",
        "--images",
        "photos",
        "--mean",
        "0.5",
        "--std",
        "0.5",
        "-o",
        "small.onnx",
        "--pixels",
    ]
    call = "from ptq2themoon.console.commands import main; main()"
    done = subprocess.run([sys.executable, "-c", call, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "To ship: small.onnx (ship, w8a8, takes pixels)" in done.stdout
    assert "agreement" in done.stdout
    assert "calibrated; give others with --test" in done.stdout
    session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["recipe"] == "ship"
    assert (session.get_inputs()[0].name, session.get_inputs()[0].type) == ("pixels", "tensor(uint8)")
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load("small.onnx").graph.node)
    assert not Path("results").exists(), "all results lie in the work folder"


def test_news_of_running_jobs_are_told_once_with_the_log_s_name(tmp_path: Path) -> None:
    old, new = tmp_path / "logs/m/fuse.log", tmp_path / "logs/m/calibrate.log"
    new.parent.mkdir(parents=True)
    for log in (old, new):
        log.write_text("reading\ncalibrate: 2 of 8 (25 %), 12 s left\n")
    os.utime(old, (1, 1))
    progress = Progress(tmp_path, since=100.0)
    assert progress.news() == ["  logs/m/calibrate.log: calibrate: 2 of 8 (25 %), 12 s left"]
    assert progress.news() == []
    new.write_text(f"{new.read_text()}calibrate: 4 of 8 (50 %), 8 s left\nwarning: other\n")
    assert progress.news() == ["  logs/m/calibrate.log: calibrate: 4 of 8 (50 %), 8 s left"]


def test_a_run_that_takes_long_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_jobs, "EVERY", 0.05)
    (tmp_path / "logs").mkdir()
    job = "import time; open('logs/a.log', 'w').write('evaluate: 1 of 2 (50 %), 1 s left'); time.sleep(0.5)"
    told: list[str] = []
    with subprocess.Popen([sys.executable, "-c", f"{job}; raise SystemExit(3)"], cwd=tmp_path) as process:
        assert running_jobs.waited_for(process, tmp_path, told.append) == 3
    assert told == ["  logs/a.log: evaluate: 1 of 2 (50 %), 1 s left"]


def test_the_data_of_a_large_model_go_with_the_file_to_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_data, "MOST_BYTES", 100)
    weight = numpy_helper.from_array(np.ones(2000, np.float32), "weight")
    (tmp_path / "results").mkdir()
    int8, out = tmp_path / "results/int8.onnx", tmp_path / "mine.onnx"
    write_model(helper.make_model(helper.make_graph([], "large", [], [], [weight])), int8)
    assert ship(int8, out, pixels=False) == f"{out} with {out}.data"
    shutil.rmtree(tmp_path / "results")
    onnx.load(out)
