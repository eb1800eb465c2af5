"""The check of an INT8 model against the simulation, and the two stages, on a tiny model."""

from __future__ import annotations

import importlib.util
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import tiny_stages
import torch
from onnx import numpy_helper
from scripts import script_path
from tiny_deployed import Quantized, sqnr
from tiny_quantized import Tiny, images
from tiny_stages import STAGES, run_stage

from ptq2themoon.benchmark.runtimes import OpenVino, openvino_runner
from ptq2themoon.deploy.compare import Difference, compare
from ptq2themoon.deploy.deploy_records import RuntimeMetrics
from ptq2themoon.deploy.runtime_check import Comparison, compare_runs, departure, least_agreement, run_in_turn
from ptq2themoon.graph.editing.onnx_run import runner, session
from ptq2themoon.safety.sidecars import sha256
from ptq2themoon.vocabulary.errors import UserError

DEPLOY, VERIFY = STAGES["deploy"], STAGES["verify_runtime"]


def test_a_difference_knows_ties() -> None:
    found = Difference("a", "faithful")
    found.add(np.array([3.0, -2, 5]), np.array([3.0, -1, 5]), np.array([3.2, -1.4999, 5]))
    assert (found.values, found.differ, found.largest) == (3, 1, 1)
    assert found.from_tie == pytest.approx(1e-4)
    assert not found.departs
    found.add(np.array([1.0]), np.array([2.0]), np.array([1.8]))
    assert found.from_tie == pytest.approx(0.3)
    assert found.departs
    further = Difference("b", "faithful")
    further.add(np.array([4.0]), np.array([2.0]), np.array([2.5]))
    assert further.departs


def test_a_fast_operator_departs_by_more_than_a_step() -> None:
    near, far = Difference("a", "fast"), Difference("b", "fast")
    near.add(np.array([0.4, 1.6]), np.array([0.0, 2.0]), np.zeros(2))
    far.add(np.array([1.4, 4.0]), np.array([0.0, 2.0]), np.zeros(2))
    assert (near.rms, near.departs) == (pytest.approx(0.4), False)
    assert far.departs
    assert departure([near, far]) == "b"


def test_a_wrong_operator_is_named(tiny: Tiny) -> None:
    """The simulation of other weights departs first where those are read."""
    made = Quantized.of(tiny, "vanilla", (8, 8), images(12))
    wrong = onnx.ModelProto.FromString(made.model.SerializeToString())
    node = next(n for n in wrong.graph.node if n.name == tiny.role("fc1", 1))
    weight = next(t for t in wrong.graph.initializer if t.name == node.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
    for mode in ("faithful", "fast"):
        found = compare(wrong, made.quantized, made.simulated, made.images, mode)  # type: ignore[arg-type]
        assert [d.operator for d in found if d.departs] == [tiny.role("fc1", 1)]
        assert departure(found) == tiny.role("fc1", 1)


def test_fast_operators_are_within_a_step_of_the_simulation(tiny: Tiny) -> None:
    made = Quantized.of(tiny, "layernorm", (8, 8), images(12))
    found = compare(made.model, made.quantized, made.simulated, made.images, "fast")
    assert not any(d.departs for d in found)
    assert np.median([d.rms for d in found]) == pytest.approx(1 / np.sqrt(12), rel=0.2)


def compared(classifier: bool = True, labelled: bool = True, **values: list[list[float]]) -> dict[str, Any]:
    """Metrics of three images of classes 0, 1, 1, in two batches."""
    found, labels = Comparison(classifier, labelled), torch.tensor([0, 1, 1])
    outputs = [torch.tensor(values[name]) for name in ("runtime", "simulated", "floating")]
    for part in (slice(0, 2), slice(2, 3)):
        found.add(*(output[part] for output in outputs), labels[part])
    return found.metrics()


def test_metrics_by_hand() -> None:
    right, wrong = [4.0, 1.0, 0.0], [0.0, 1.0, 4.0]
    values = {"runtime": [right, right, wrong], "simulated": [right, wrong, wrong]}
    values["floating"] = [wrong, wrong, right]
    metrics = compared(**values)
    assert metrics["top1"] == pytest.approx(100 / 3)
    assert metrics["simulated_top1"] == pytest.approx(100 / 3)
    assert metrics["agreement_simulation"] == pytest.approx(200 / 3)
    assert metrics["agreement"] == 0
    assert metrics["simulated_agreement"] == pytest.approx(100 / 3)
    assert metrics["images"] == 3
    unlabelled = compared(labelled=False, **values)
    assert (unlabelled["top1"], unlabelled["agreement"]) == (None, 0)
    without = compared(classifier=False, **values)
    assert without["agreement_simulation"] is None
    assert without["logits_sqnr_db"] is not None
    assert least_agreement(without, "faithful") is None
    assert least_agreement({"simulated_agreement": 99.9}, "faithful") == 99
    assert least_agreement({"simulated_agreement": 97.5}, "fast") == 96.5
    same = compared(runtime=[right] * 3, simulated=[right] * 3, floating=[wrong] * 3)
    assert same["logits_sqnr_db_simulation"] is None


def test_outputs_that_are_not_finite_are_refused(tiny: Tiny) -> None:
    made = Quantized.of(tiny, "vanilla", (8, 8), images(12))
    batch = [(made.images, torch.zeros(3, dtype=torch.int64))]
    run = runner(session(made.deployed("fast").model, quantized=True))
    outputs = made.simulated(made.images), torch.from_numpy(made.floating())
    found = compare_runs(run_in_turn({"fast": run, "faithful": run}, batch), *outputs)
    assert found["fast"] == found["faithful"]
    assert found["fast"]["logits_sqnr_db_simulation"] > 20
    with pytest.raises(UserError, match="INT8 model gives outputs that are not finite"):
        compare_runs(run_in_turn({"fast": lambda x: run(x) * np.nan}, batch), *outputs)


def test_a_graph_that_the_runtime_refuses(tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"int8.onnx: ONNX Runtime cannot run it"):
        session(path, quantized=True)


def test_openvino_gives_the_same_or_says_what_to_install(tiny: Tiny, tmp_path: Path) -> None:
    made = Quantized.of(tiny, "vanilla", (8, 8), images(12))
    for mode in ("faithful", "fast"):
        deployed, path = made.deployed(mode), tmp_path / f"{mode}.onnx"  # type: ignore[arg-type]
        onnx.save(deployed.model, path)
        if importlib.util.find_spec("openvino") is None:
            with pytest.raises(UserError, match="openvino is not installed here; `make peers`"):
                OpenVino(1)
        else:
            compiled = OpenVino(1).compile(path, tuple(made.images.shape), "f32")
            assert sqnr(openvino_runner(compiled)(made.images.numpy()), made.run(deployed)) > 20


# The stages ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to a simulation's outputs, then an INT8 model of either mode."""
    folder = tiny_stages.write_inputs(tmp_path_factory.mktemp("deploy"))
    first = ("export", "draw_calibration", "list_evaluation", "fuse", "reference", "calibrate", "evaluate")
    for stage in first:
        assert run_stage(folder, stage).status == 0
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("mode", ["faithful", "fast"])
def test_a_model_is_deployed_and_checked(folder: Path, mode: str) -> None:
    moved = {k: v.replace("faithful", mode) for k, v in DEPLOY.items() if k.startswith("out")}
    assert run_stage(folder, "deploy", **moved, mode=mode).status == 0
    out = folder / "out/q" / mode
    report = read(out / "deploy.json")
    assert report["graph_sha256"] == sha256(folder / "out/fused.onnx")
    assert report["qparams_sha256"] == sha256(folder / "out/q/qparams.json")
    assert report["int8_sha256"] == sha256(out / "int8.onnx")
    assert report["bytes"] == {
        "fp32": (folder / "out/fused.onnx").stat().st_size, "int8": (out / "int8.onnx").stat().st_size
    }  # fmt: skip
    moved = {k: v.replace("faithful", mode) for k, v in VERIFY.items() if "faithful" in str(v)}
    ended = run_stage(folder, "verify_runtime", **moved)
    assert ended.status == 0, ended.err
    found = read(folder / "out/q/runtime.json")[mode]
    assert found["images"] == 31
    assert found["operators"] == len(read(folder / "out/q/qparams.json")["operators"])
    assert (found["departing"], found["first_departing"]) == (0, None)
    assert found["agreement_simulation"] > 80
    assert found["kernels"]["MatMulIntegerToFloat"] + found["kernels"]["QLinearMatMul"] >= 12
    table = pd.read_csv(folder / "out/q/runtime_operators.csv")
    assert len(table) == found["operators"]
    assert set(table["mode"]) == {mode}
    assert not table["departs"].any()
    assert set(table["runs"]) == {"integer", "float"}
    assert table["from_tie"].isna().all() == (mode == "fast")


def test_both_modes_are_checked_in_one_go(folder: Path) -> None:
    models, reports = [], []
    for mode in ("fast", "faithful"):
        moved = {k: v.replace("faithful", mode) for k, v in DEPLOY.items() if k.startswith("out")}
        assert run_stage(folder, "deploy", **moved, mode=mode).status == 0
        models.append(moved["out"])
        reports.append(moved["out-report"])
    assert run_stage(folder, "verify_runtime", int8=models, deployed=reports).status == 0
    assert list(read(folder / "out/q/runtime.json")) == ["version", "runtime", "faithful", "fast"]
    assert set(pd.read_csv(folder / "out/q/runtime_operators.csv")["mode"]) == {"fast", "faithful"}
    ended = run_stage(folder, "verify_runtime", int8=models)
    assert "--deployed: 1 files, --int8: 2; give one of each for a mode" in ended.err
    ended = run_stage(folder, "verify_runtime", int8=models[:1] * 2, deployed=reports[:1] * 2)
    assert "mode 'fast' is given twice" in ended.err


def test_low_agreement_is_said_with_the_operator(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_stage(folder, "deploy").status == 0
    monkeypatch.setattr("ptq2themoon.deploy.runtime_check.AGREEMENT", 100.1)
    ended = run_stage(folder, "verify_runtime")
    assert ended.status == 0
    assert "less than 100.10 %; first operator that departs: none" in ended.err.splitlines()[-1]
    assert read(folder / "out/q/runtime.json")["faithful"]["agrees"] is False


def test_files_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    assert run_stage(folder, "deploy").status == 0
    other = read(folder / "out/q/qparams.json") | {"graph_sha256": "0"}
    (folder / "other.json").write_text(json.dumps(other))
    arrays = "out/q/qparams.safetensors"
    ended = run_stage(folder, "deploy", qparams=["other.json", arrays], out="new/int8.onnx")
    assert ended.status == 2
    assert "other.json: the parameters belong to another graph" in ended.err
    assert not (folder / "new/int8.onnx").exists()
    (folder / "other.onnx").write_bytes((folder / "out/q/faithful/int8.onnx").read_bytes() + b"\0")
    ended = run_stage(folder, "verify_runtime", int8="other.onnx")
    assert ended.err.splitlines()[-1] == (
        "error: out/q/faithful/deploy.json: belongs to another file than other.onnx; deploy again"
    )
    ended = run_stage(folder, "verify_runtime", deployed="out/fusion.json")
    assert "out/fusion.json: mode: missing (and" in ended.err
    assert ended.err.endswith("; run the deploy stage again\n")
    assert run_stage(folder, "verify_runtime", operator_images=0).status == 2


def test_products_that_run_otherwise_than_deploy_says_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    warn = runpy.run_path(str(script_path("verify_runtime.py")))["warn"]
    found = RuntimeMetrics.model_construct(kernels={"MatMulIntegerToFloat": 2, "MatMul": 1}, agrees=None)
    warn(Path("int8.onnx"), found, 2)
    assert capsys.readouterr().err == ""
    warn(Path("int8.onnx"), found, 3)
    said = capsys.readouterr().err
    assert said.startswith("warning: int8.onnx: deploy.json says that 3 products run in integers")
    assert "ONNX Runtime runs 2" in said
