"""A tiny model without and with fusion: counts, what is timed computes the model, both tables."""

from __future__ import annotations

import json
import runpy
import sys
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tiny_info import fusion_report, model_info
from tiny_models import run_all, tiny_module, tiny_vit, to_onnx
from tiny_quantized import RECIPES, images

from ptq2themoon.benchmark.fusion import (
    COLUMNS,
    COUNTS,
    EXECUTORS,
    PPQ,
    RUNTIME,
    UNOPTIMISED,
    WITH,
    WITHOUT,
    Contestant,
    Form,
    comparison,
    contestants,
    operator_counts,
    paced,
    same_logits,
    without_fusion,
)
from ptq2themoon.benchmark.timing import SHORTEST, WARM_UP
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import load_recipe

SCRIPT = Path(__file__).parents[2] / "workflow/scripts/study/study_fusion.py"
NORMS = 5  # two a block, one at the end
LINEAR = 8  # four a block; the head is a Gemm
GELUS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.onnx, unfused.onnx, fused.onnx, model.json and calibration.safetensors."""
    folder = tmp_path_factory.mktemp("fusion")
    onnx.save(to_onnx(tiny_module()), folder / "model.onnx")
    path, operators = tiny_vit(folder)
    records.write(folder / "fusion.json", fusion_report(onnx.load(path), operators))
    onnx.save(without_fusion(folder / "model.onnx"), folder / "unfused.onnx")
    (folder / "model.json").write_text(json.dumps(model_info()))
    pixels = torch.randint(0, 256, (6, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    save_file({"images": pixels, "labels": torch.arange(6) % 5}, folder / "calibration.safetensors")
    return folder


def forms(folder: Path, recipe: str = "vanilla") -> list[Form]:
    paths = {WITHOUT: folder / "unfused.onnx", WITH: folder / "fused.onnx"}
    chosen, pixels = load_recipe(RECIPES / f"{recipe}.yaml"), images(6).numpy()
    return [Form(fusion, path, chosen, (8, 8), pixels) for fusion, path in paths.items()]


def test_without_fusion_the_graph_is_the_exported_one_in_another_form(folder: Path) -> None:
    original, unfused, fused = (read_graph(folder / f"{n}.onnx") for n in ("model", "unfused", "fused"))
    pixels = images(3).numpy()
    np.testing.assert_allclose(run_all(unfused, pixels)[0], run_all(original, pixels)[0], atol=1e-5)
    opsets = [{o.domain: o.version for o in model.opset_import}[""] for model in (unfused, fused)]
    assert opsets[0] == opsets[1]
    names = [node.name for node in unfused.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)


def test_operators_of_each_type_counted_by_hand(folder: Path) -> None:
    table = operator_counts(forms(folder))
    counts = {row.operator: (row[2], row[3]) for row in table.itertuples()}
    assert counts["LayerNormalization"] == (0, NORMS)
    assert counts["PPQBiasFusedMatMul"] == (0, LINEAR)
    assert counts["Gelu"] == (0, GELUS)
    assert counts["ReduceMean"] == (2 * NORMS, 0)
    assert counts["MatMul"] == (LINEAR + 4, 4)
    assert list(table[WITHOUT]) == sorted(table[WITHOUT], reverse=True)
    nodes = [len(read_graph(form.path).graph.node) for form in forms(folder)]
    assert [table[WITHOUT].sum(), table[WITH].sum()] == nodes


def test_everything_that_is_timed_computes_the_model(folder: Path, tmp_path: Path) -> None:
    both = forms(folder)
    logits = same_logits(both)
    found = contestants(both, "w8a8", 1, tmp_path)
    table = pd.DataFrame(comparison(found, both[0].images, logits, rounds=2))
    assert list(zip(table["executor"], table["precision"], table["fusion"], strict=True)) == list(
        product(EXECUTORS, ("fp32", "w8a8"), (WITHOUT, WITH))
    )
    assert set(table["note"]) == {""}
    quantized = table["precision"] == "w8a8"
    assert table.loc[quantized, "sqnr_db"].min() > 15
    assert table.loc[~quantized, "sqnr_db"].isna().all()
    for contestant in found:
        if not contestant.is_quantized:
            np.testing.assert_allclose(contestant.run(both[0].images), logits, atol=1e-4)
    # The same grids in all executors: what differs is ties.
    for fusion in (WITHOUT, WITH):
        assert np.ptp(table[quantized & (table["fusion"] == fusion)]["sqnr_db"]) < 1


def test_fusion_leaves_fewer_operators_and_quantized_tensors(folder: Path, tmp_path: Path) -> None:
    found = {(c.executor, c.precision, c.fusion): c for c in contestants(forms(folder), "w8a8", 1, tmp_path)}
    for executor, precision in product(EXECUTORS, ("fp32", "w8a8")):
        without, with_ = (found[executor, precision, fusion] for fusion in (WITHOUT, WITH))
        assert with_.operators < without.operators
        assert with_.quantized_tensors <= without.quantized_tensors
        assert (with_.quantized_tensors < without.quantized_tensors) == (precision == "w8a8")
    assert found[PPQ, "w8a8", WITH].quantized_tensors == 101  # as in test_plan
    assert found[PPQ, "fp32", WITHOUT].executed == found[PPQ, "fp32", WITHOUT].operators
    # ONNX Runtime fuses by itself, unless it is told not to.
    assert found[RUNTIME, "fp32", WITHOUT].executed == found[RUNTIME, "fp32", WITH].executed
    unoptimised = found[UNOPTIMISED, "fp32", WITHOUT]
    assert unoptimised.executed == unoptimised.operators > found[RUNTIME, "fp32", WITHOUT].executed


def test_what_does_not_run_says_why_and_has_no_ratio(folder: Path, tmp_path: Path) -> None:
    """This recipe selects roles, which operators have only with fusion; here none has."""
    both = forms(folder, "layernorm")
    table = pd.DataFrame(
        comparison(contestants(both, "w8a8", 1, tmp_path), both[0].images, same_logits(both), 1)
    )
    quantized = table["precision"] == "w8a8"
    assert table.loc[quantized, "note"].str.match("not timed: .*layernorm.yaml: .* selects no operator").all()
    assert table.loc[quantized, ["median_ms", "ratio", "sqnr_db"]].isna().all(axis=None)
    assert table.loc[~quantized, ["median_ms", "ratio"]].gt(0).all(axis=None)


def test_output_that_is_not_finite_is_noted() -> None:
    broken = Contestant(PPQ, "w8a8", WITHOUT, run=lambda pixels: np.full((len(pixels), 5), np.nan))
    assert broken.judge(np.zeros((2, 1, 16, 16), np.float32), np.ones((2, 5), np.float32)) is None
    assert broken.note == "output not finite"


def test_another_models_fused_graph_is_refused(folder: Path, tmp_path: Path) -> None:
    other, _ = tiny_vit(tmp_path, num_heads=4)
    without, with_ = forms(folder)
    with_.path = other
    with pytest.raises(UserError, match=r"fused\.onnx: its logits differ by .* run the fuse stage again"):
        same_logits([without, with_])


def test_short_work_is_repeated_and_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], {"short": 0, "long": 0}

    def work(name: str, seconds: float) -> None:
        now[0] += seconds
        calls[name] += 1

    monkeypatch.setattr("ptq2themoon.benchmark.timing.interleaved.__defaults__", (None, lambda: now[0]))
    lengths = {"short": SHORTEST / 3.5, "long": 2 * SHORTEST}
    times = paced({name: (lambda n=name, s=s: work(n, s)) for name, s in lengths.items()}, rounds=2)
    assert times == {name: pytest.approx([seconds] * 2) for name, seconds in lengths.items()}
    assert calls == {"short": WARM_UP + 1 + 4 * (WARM_UP + 2), "long": WARM_UP + 1 + WARM_UP + 2}


# The script ---------------------------------------------------------------------------------------


def arguments(folder: Path, out: Path, **changes: object) -> list[str]:
    options = {
        "name": "tiny", "model": folder, "recipe": RECIPES / "vanilla.yaml", "bits": "w8a8",
        "images": folder / "calibration.safetensors", "calibration-count": 4, "rounds": 1, "threads": 1,
        "out": out / "fusion.csv", "out-operators": out / "fusion_operators.csv",
    }  # fmt: skip
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def run_script(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_script_writes_both_tables(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_script(monkeypatch, *arguments(folder, tmp_path))
    table = pd.read_csv(tmp_path / "fusion.csv")
    assert (tuple(table), len(table)) == (COLUMNS, 12)
    assert table[[*COUNTS, "median_ms", "ratio"]].notna().all(axis=None)
    assert (table[["low_ms", "median_ms", "high_ms"]].diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    assert (table.loc[table["fusion"] == WITHOUT, "ratio"] == 1).all()
    assert set(table["model"]) == {"tiny"}
    assert [set(table[key]) for key in ("batch", "threads", "rounds", "images")] == [{1}, {1}, {1}, {4}]
    operators = pd.read_csv(tmp_path / "fusion_operators.csv")
    in_ppq = table[(table["executor"] == PPQ) & (table["precision"] == "fp32")].set_index("fusion")
    assert dict(in_ppq["operators"]) == {fusion: operators[fusion].sum() for fusion in (WITHOUT, WITH)}
    sidecar = json.loads((tmp_path / "fusion.sidecar.json").read_text())
    assert sidecar["parameters"]["machine"]["threads"] == 1
    assert sidecar["parameters"]["recipe"] == "vanilla"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "error: --rounds 0: must be 1 or more"),
        ({"calibration_count": 0}, "error: --calibration-count 0: must be 1 or more"),
        ({"bits": "w9a8"}, "error: bits 'w9a8': must lie in w2a2 to w8a8; nearest valid: 'w8a8'"),
        ({"model": "nowhere"}, "error: nowhere/model.onnx: not found; stage study_fusion needs it"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, changes, message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_script(monkeypatch, *arguments(folder, tmp_path, **changes))
    assert capsys.readouterr().err == message + "\n"
    assert list(tmp_path.iterdir()) == []
