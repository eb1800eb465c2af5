"""`ptq2themoon compare` on committed results, on changed copies of them, and on revisions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_stages
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ptq2themoon.console.commands import main
from ptq2themoon.console.comparison import noise
from ptq2themoon.console.comparison.findings import changes
from ptq2themoon.console.comparison.noise import bounded_hits, paired_hits

ROOT = Path(__file__).parents[2]
VANILLA = "results/demo/vanilla/w8a8-n256-s0"
TINY = "layernorm/w8a8-n24-s3"


def compare(first: Path | str, second: Path | str, *words: str) -> tuple[int, str]:
    """Status, and what is said with line breaks as blanks."""
    ended = CliRunner().invoke(main, ["compare", str(first), str(second), *words], env={"COLUMNS": "300"})
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended.exit_code, ended.output


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs with the committed results and recipes, and made-up attention of every image."""
    rng = np.random.default_rng(1)
    attention = pd.DataFrame({"cosine": rng.uniform(0.98, 1, 2000), "kl": rng.uniform(0, 0.1, 2000)})
    for name in ("first", "second"):
        shutil.copytree(ROOT / "recipes", tmp_path / name / "recipes")
        for path in ("vanilla", "customized", "fp32"):
            shutil.copytree(ROOT / "results/example/demo" / path, tmp_path / name / "results/demo" / path)
        shutil.copy(ROOT / "results/example/demo/evaluation.csv", tmp_path / name / "results/demo")
        attention.to_csv(tmp_path / name / VANILLA / "attention.csv", index=False)
    return tmp_path / "first", tmp_path / "second"


def edit(path: Path, change: Callable[[dict], object]) -> None:
    """Change the object in a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_same_results_do_not_differ(sides: tuple[Path, Path]) -> None:
    status, said = compare(*sides)
    assert status == 0
    assert said.endswith("no difference beyond noise\n")
    assert " 0 changed" in said
    assert "scales not compared" in said


def test_other_numerics_are_noise(sides: tuple[Path, Path]) -> None:
    """As another processor changes them: three images, hundredths of a dB, last digits of every image."""
    _, second = sides
    edit(second / VANILLA / "metrics.json", lambda m: m.update(top1=m["top1"] + 0.15, agreement=99.2))
    edit(second / VANILLA / "metrics.json", lambda m: m.update(logits_sqnr_db=m["logits_sqnr_db"] + 0.03))
    edit(second / VANILLA / "metrics.sidecar.json", lambda s: s["versions"].update(torch="2.15.1"))
    attention = pd.read_csv(second / VANILLA / "attention.csv")
    rng = np.random.default_rng(0)
    attention["cosine"] += rng.normal(0, 1e-5, len(attention))
    attention.to_csv(second / VANILLA / "attention.csv", index=False)
    operators = pd.read_csv(second / VANILLA / "operators.csv")
    operators["sqnr_db"] += rng.uniform(-0.2, 0.2, len(operators))
    operators.to_csv(second / VANILLA / "operators.csv", index=False)
    status, said = compare(*sides)
    assert status == 0, said
    assert "note: versions.torch: 2.15.0 → 2.15.1" in said
    assert " 0 changed" not in said


def test_a_changed_recipe_is_named_with_what_it_changed(sides: tuple[Path, Path]) -> None:
    """`vanilla` as `customized` is: its recipe, and the results that this gives."""
    _, second = sides
    shutil.rmtree(second / "results/demo/vanilla")
    shutil.copytree(second / "results/demo/customized", second / "results/demo/vanilla")
    shutil.copy(second / "recipes/customized.yaml", second / "recipes/vanilla.yaml")
    text = (second / "recipes/vanilla.yaml").read_text().replace("extends: vanilla\n", "")
    (second / "recipes/vanilla.yaml").write_text(text)
    table = second / "changed.csv"
    status, said = compare(*sides, "--csv", str(table))
    assert status == 1
    assert said.endswith("the results differ\n")
    assert "made otherwise: recipe vanilla: " in said
    row = next(line for line in said.splitlines() if "logits_sqnr_db" in line)
    assert "demo/vanilla/w8a8-n256-s0" in row
    sqnr = [json.loads((side / VANILLA / "metrics.json").read_text())["logits_sqnr_db"] for side in sides]
    assert f"\N{MINUS SIGN}{sqnr[0] - sqnr[1]:.4f}" in row
    found = pd.read_csv(table).set_index(["run", "figure"])
    assert found.loc[("demo/vanilla/w8a8-n256-s0", "logits_sqnr_db"), "beyond"]
    assert not any(run.startswith("demo/customized") for run, _ in found.index)


def test_many_lost_images_are_more_than_noise_and_few_are_not(sides: tuple[Path, Path]) -> None:
    _, second = sides
    edit(second / VANILLA / "metrics.json", lambda m: m.update(top1=m["top1"] - 3))
    status, said = compare(*sides)
    assert status == 1
    assert "paired, p ≤ " in next(line for line in said.splitlines() if "top1" in line)


def test_other_images_parameters_and_files_are_named(sides: tuple[Path, Path]) -> None:
    first, second = sides
    manifest = second / "results/demo/evaluation.csv"
    manifest.write_text(manifest.read_text().replace("\n1,", "\n2001,", 1))
    edit(second / VANILLA / "metrics.sidecar.json", lambda s: s["parameters"].update(batch_size=50))
    (first / VANILLA / "ranking.json").unlink()
    status, said = compare(*sides)
    assert status == 1
    assert "made otherwise: demo: measured on other images" in said
    assert "demo/vanilla/w8a8-n256-s0, evaluate: batch_size: 25 → 50" in said
    assert f"only in {second}: {VANILLA}/ranking.json" in said


@pytest.fixture
def tiny(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two copies of a small run with its heavy files, where the workflow would put them."""
    made = tiny_stages.chain(tmp_path_factory.getbasetemp()) / "out"
    for name in ("first", "second"):
        small, heavy = tmp_path / name / "results/tiny", tmp_path / name / "results/models/tiny"
        for folder in (small / TINY, small / "fp32", heavy / TINY, heavy / "fp32"):
            folder.mkdir(parents=True)
        shutil.copy(made / "evaluation.csv", small)
        shutil.copy(made / "fp32/metrics.json", small / "fp32")
        shutil.copy(made / "fp32/reference.safetensors", heavy / "fp32")
        for file in ("metrics.json", "attention.csv", "operators.csv"):
            shutil.copy(made / "q" / file, small / TINY)
        for file in ("qparams.json", "qparams.safetensors", "simulated.safetensors"):
            shutil.copy(made / "q" / file, heavy / TINY)
    return tmp_path / "first", tmp_path / "second"


@pytest.mark.parametrize(("factor", "status"), [(1 + 2e-7, 0), (1.01, 1)])
def test_scales_that_moved_are_named_but_for_last_digits(
    tiny: tuple[Path, Path], factor: float, status: int
) -> None:
    heavy = tiny[1] / "results/models/tiny" / TINY

    def stretch(content: dict) -> None:
        quantizer = content["operators"][0]["tensors"][0]["quantizer"]
        quantizer["scale"] = float(np.float32(quantizer["scale"] * factor))

    edit(heavy / "qparams.json", stretch)
    found, said = compare(*tiny)
    assert (found, "scales moved: tiny/layernorm/w8a8-n24-s3: patch_embed input 0: scale" in said) == (
        status,
        bool(status),
    )


def test_images_are_paired_where_outputs_are_there(tiny: tuple[Path, Path]) -> None:
    small = tiny[1] / "results/tiny" / TINY
    path = tiny[1] / "results/models/tiny" / TINY / "simulated.safetensors"
    output = load_file(path)["output"]
    save_file({"output": -output}, path, {"version": "1"})
    edit(small / "metrics.json", lambda m: m.update(agreement=0.0))
    status, said = compare(*tiny)
    assert status == 1
    assert "paired, p = " in next(line for line in said.splitlines() if "agreement" in line)


def test_another_recipe_and_the_study_of_one_side_are_notes_though_heavy_files_are_there(
    tiny: tuple[Path, Path],
) -> None:
    for place in ("results/tiny", "results/models/tiny"):
        shutil.copytree(tiny[1] / place / "layernorm", tiny[1] / place / "mine")
    heavy = tiny[1] / "results/models/tiny"
    for name in ("calibration-n64-s2.safetensors", "fp32/rollout.safetensors", "../random/model.onnx"):
        (heavy / name).parent.mkdir(exist_ok=True)
        (heavy / name).write_bytes(b"")  # the study's, and a model of the benchmark
    status, said = compare(*tiny)
    assert (status, "only in" in said) == (0, False), said
    assert f"note: not compared, for only {tiny[1]} has them: results/tiny/mine" in said
    (heavy / TINY / "int8.onnx").write_bytes(b"")
    status, said = compare(*tiny)
    assert (status, f"only in {tiny[1]}: results/models/tiny/{TINY}/int8.onnx" in said) == (1, True), said


def git(folder: Path, *words: str) -> None:
    name = ["-c", "user.name=test", "-c", "user.email=test", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *name, *words], cwd=folder, capture_output=True, check=True)


def test_revisions_are_compared_with_each_other_and_with_folders(
    sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = sides
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)  # of a git hook that runs the tests
    git(second, "init", "-q")
    for change in (0, 5):
        edit(second / VANILLA / "metrics.json", lambda m: m.update(logits_sqnr_db=28 + change))  # noqa: B023
        git(second, "add", ".")
        git(second, "commit", "-q", "-m", f"change {change}")
    monkeypatch.chdir(second / "results")
    assert compare("HEAD", second)[0] == 0
    status, said = compare("HEAD~1", "HEAD")
    assert status == 1
    assert "33.0000" in said
    assert compare(first / "results", "HEAD")[0] == 1


def test_the_committed_example_is_found_in_a_folder_and_in_a_revision(
    sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only a run has, here attention of every image, is no difference; what the example lacks is one."""
    ran, clone = sides
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    (clone / VANILLA / "attention.csv").unlink()
    (clone / "results").rename(clone / "committed")
    (clone / "results").mkdir()
    (clone / "committed").rename(clone / "results/example")
    git(clone, "init", "-q")
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "results")
    monkeypatch.chdir(clone)
    (ran / "results/stretched-demo").mkdir()  # of the benchmark
    (ran / "results/stretched-demo/evaluation.csv").write_text("image")
    for committed in ("HEAD", ".", "results", "results/example"):
        status, said = compare(committed, ran)
        assert (status, "only in" in said) == (0, False), said
    shutil.rmtree(ran / "results/demo/customized")  # as if HEAD had more recipes, or the study
    status, said = compare("HEAD", ran)
    assert status == 0
    assert "note: not compared, for only HEAD has them: results/demo/customized" in said
    (ran / VANILLA / "ranking.json").unlink()
    status, said = compare("HEAD", ran)
    assert f"only in HEAD: {VANILLA}/ranking.json" in said
    assert status == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("first", "nothing"), "error: nothing: neither a folder nor a revision of a git repository here"),
        (("first", "empty"), "error: empty: holds no results; give a folder in which `snakemake` ran"),
        (("first", "other"), "error: first and other: have no run, and no row of the leaderboard, in common"),
        (("first", "broken"), "error: broken: results/demo/fp32/metrics.json: not readable as JSON"),
        (("-x", "first"), "Usage: "),
    ],
)
def test_bad_input_is_one_line(
    sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, words: tuple[str, str], said: str
) -> None:
    monkeypatch.chdir(sides[0].parent)
    Path("empty").mkdir()
    shutil.copytree("first", "other")
    Path("other/results/demo").rename("other/results/elsewhere")
    shutil.copytree("first", "broken")
    Path("broken/results/demo/fp32/metrics.json").write_text("{")
    status, text = compare(*words)
    assert status == 2
    assert text.startswith(said)
    assert text.startswith("Usage") or text.count("\n") == 1


def doubled(text: str) -> str:
    return text + "\n".join(text.splitlines()[1:]) + "\n"


def of_words(text: str) -> str:
    header, *rows = text.splitlines()
    return "\n".join([header, *(",".join(["word"] * (row.count(",") + 1)) for row in rows)]) + "\n"


SPOILED = [
    (f"{VANILLA}/operators.csv", doubled, "operators.csv: holds no such results on both sides ("),
    (f"{VANILLA}/operators.csv", of_words, "operators.csv: holds no such results on both sides ("),
    (f"{VANILLA}/attention.csv", of_words, "metrics.json: holds no such results on both sides ("),
    (f"{VANILLA}/metrics.json", lambda text: "[" * 100_000, "lists and objects lie more than 100 deep"),
    (
        f"{VANILLA}/metrics.sidecar.json",
        lambda text: "[1]",
        "no sidecar; run its stage",
    ),
    (f"{VANILLA}/metrics.sidecar.json", lambda text: '{"a":' * 500 + "1" + "}" * 500, "more than 100 deep"),
]


@pytest.mark.parametrize(("name", "spoil", "message"), SPOILED)
def test_results_of_another_form_are_refused_in_a_line(
    sides: tuple[Path, Path], name: str, spoil: Callable[[str], str], message: str
) -> None:
    path = sides[1] / name
    path.write_text(spoil(path.read_text()))
    status, said = compare(*sides)
    assert status != 0
    assert message in said


def test_a_pipe_among_results_is_not_waited_for(sides: tuple[Path, Path]) -> None:
    for side in sides:
        (side / VANILLA / "metrics.sidecar.json").unlink()
        os.mkfifo(side / VANILLA / "metrics.sidecar.json")
    assert compare(*sides)[0] == 0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_percentages_alone_leave_open_at_least_the_paired_p(images: list[tuple[bool, bool]]) -> None:
    first, second = (np.array([side]) for side in zip(*images, strict=True))
    exact = paired_hits(first, second)
    bound = bounded_hits(100 * first.mean(), 100 * second.mean(), len(images))
    known = bounded_hits(100 * first.mean(), 100 * second.mean(), len(images), (first != second).sum())
    assert exact.p is not None
    assert bound.p is not None
    assert known.p == pytest.approx(exact.p)
    assert bound.p >= exact.p - 1e-9


def test_changes_name_the_place() -> None:
    first = {"rules": [{"bits": 8}, {"observer": "kl"}], "methods": []}
    second = {"rules": [{"bits": 8}, {"observer": "mse", "bits": 4}], "methods": ["gptq"]}
    assert changes(first, second) == [
        "rules[1].observer: kl → mse",
        "rules[1].bits: nothing → 4",
        "methods: [] → ['gptq']",
    ]


def test_the_page_states_the_tolerances() -> None:
    page = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
    allowed = dict(line.strip("| ").split(" | ") for line in page.splitlines() if line.count("|") == 3)
    assert allowed["output SQNR"] == f"{noise.DECIBELS} dB"
    assert allowed["SQNR of one operator"] == f"{noise.OPERATOR_DECIBELS} dB"
    assert allowed["loss"] == f"{100 * noise.FROM_ZERO['loss']:.0f} % of itself"
    assert allowed["attention KL"] == f"{100 * noise.FROM_ZERO['attention_kl']:.0f} % of itself"
    assert {f"{100 * share:.0f} %" for share in noise.FROM_ONE.values()} == {
        allowed["output cosine, attention cosine"].removesuffix(" of the distance from 1")
    }
    assert allowed["a scale"] == f"{100 * noise.SCALE:g} % of itself"
