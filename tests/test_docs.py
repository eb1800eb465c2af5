"""The pages of docs/: their recipes load, their error messages are real, their links and paths exist."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import committed
import pandas as pd
import pytest
import yaml

from ptq2themoon.tables.summary import METRICS
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.modes import MODES
from ptq2themoon.vocabulary.operators import ROLES, Operator
from ptq2themoon.vocabulary.parameters import Params
from ptq2themoon.vocabulary.recipe_language import Defaults, RecipeFile, Rule, Select
from ptq2themoon.vocabulary.recipes import load_recipe
from ptq2themoon.vocabulary.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "resources/demo/README.md"]
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
# As in a ViT of 12 blocks with query, key and value from one layer.
OUTSIDE = ("patch_embed", "pos_add", "norm", "head")
INSIDE = [role for role in ROLES if role not in (*OUTSIDE, "q", "k", "v", "other")]
OPERATORS = [Operator(role, "", role) for role in OUTSIDE]
OPERATORS += [Operator(f"blocks.{block}.{role}", "", role, block) for block in range(12) for role in INSIDE]


def blocks(page: str, kind: str) -> list[str]:
    """The fenced blocks of a kind, such as `yaml`; indentation of a block in a list removed."""
    found = re.findall(rf"^( *)```{kind}\n(.*?)^ *```$", page, flags=re.M | re.S)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in found]


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of recipes/ in the working directory, by its relative name."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return Path("recipes")


@pytest.mark.parametrize("text", blocks(RECIPES, "yaml"))
def test_recipes_of_the_docs_load(text: str, recipes: Path) -> None:
    path = recipes / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = load_recipe(path)
    recipe.check(OPERATORS)
    assert recipe.description


@pytest.mark.parametrize(
    ("text", "said"), re.findall(r"```yaml refused\n(.*?)```\n```text\n(.*?)```", RECIPES, re.S)
)
def test_messages_of_the_docs_are_real(text: str, said: str, recipes: Path) -> None:
    path = recipes / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_recipe(path).check(OPERATORS)
    assert str(error.value) == said.rstrip("\n")


def test_the_parameters_of_the_docs_are_valid(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (recipes / "mine.yaml").write_text(blocks(RECIPES, "yaml")[0], encoding="utf-8")
    (changes,) = blocks(RECIPES, "yaml params")
    there = recipes.absolute()
    monkeypatch.chdir(ROOT)  # where the default's model lies
    mapping = {**read_yaml(ROOT / "params.yaml"), **yaml.safe_load(changes)}
    assert Params.from_mapping(mapping, "docs", there).recipes == ["vanilla", "mine"]


FAQ = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "said"), re.findall(r"```yaml slip\n(.*?)```\n```text\n(.*?)```", FAQ, re.S)
)
def test_slips_of_the_faq_are_refused_as_it_says(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # where the default's model lies
    rest = {key: value for key, value in read_yaml(Path("params.yaml")).items() if f"{key}:" not in text}
    path = tmp_path / "mine.yaml"
    path.write_text(text + yaml.safe_dump(rest))
    with pytest.raises(UserError) as error:
        Params.from_mapping(read_yaml(path), "mine.yaml").check_files("mine.yaml")
    assert str(error.value).replace(f"{tmp_path}/", "") == said.rstrip("\n")


def test_every_key_and_role_is_described() -> None:
    keys = {key for model in (RecipeFile, Defaults, Rule, Select) for key in model.model_fields}
    assert sorted(key for key in keys if f"`{key}`" not in RECIPES) == []
    assert sorted(role for role in ROLES if not re.search(rf"\b{role}\b", RECIPES)) == []


# Links and paths ----------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


TOP = {path.name for path in ROOT.iterdir() if path.is_dir()} - {
    "results",
    "logs",
    "benchmarks",
    ".snakemake",
}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_paths_in_backticks_exist(page: Path) -> None:
    """Those that begin with a folder of the repository; but for placeholders and what a run makes."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    missing = []
    for path in re.findall(r"`([^`\s]+/[^`\s]*)`", text):
        made = re.search(r"[{}*…]", path) or path.partition("/")[0] not in TOP or path == "recipes/mine.yaml"
        if not made and not (ROOT / path).exists():
            missing.append(path)
    assert missing == []


def test_the_docs_show_what_the_pipeline_wrote() -> None:
    assert committed.text("results/example/summary.md").strip() in committed.text("docs/results.md")
    readme = committed.text("README.md")
    seconds = committed.table("results/example/timings.csv", index_col="rule")["seconds"]
    assert f"took **{seconds['from first to last']:.0f} seconds**" in readme


def test_the_stability_that_the_docs_claim_was_measured() -> None:
    text = " ".join(committed.text("docs/workflow.md").split())
    found = [
        json.loads(committed.read(name)) for name in committed.names("results/example/demo/*/*/ranking.json")
    ]
    assert len(found) == 3
    assert f"of at least {min(ranking['spearman'] for ranking in found):.2f}," in text
    assert f"on {min(ranking['top_shared'] for ranking in found)} of the 10 worst or more" in text


def test_the_first_screen_has_the_figures_of_the_benchmark() -> None:
    peers = committed.table("results/example/benchmarks/peers.csv")
    times = committed.table("results/example/benchmarks/latency.csv")
    readme = committed.text("README.md")
    assert f"on {times['threads'].unique().item()} CPU cores" in readme
    for name, variant in (("FP32", "FP32"), ("INT8", "ship/fast")):
        own = peers[(peers["model"] == "demo") & (peers["variant"] == variant)]
        measured = own[own["runtime"] == "ONNX Runtime"].iloc[0]
        of_model = (times["model"] == "demo") & (times["batch"] == 1) & (times["variant"] == variant)
        by_runtime = times[of_model & (times["precision"] == "f32")].set_index("runtime")["median_ms"]
        cells = [f"{measured['bytes'] / 1e6:.1f}"]
        cells += [f"{by_runtime[runtime]:.2f}" for runtime in ("ONNX Runtime", "OpenVINO")]
        cells += [f"{measured['top1']:.2f}", f"{measured['agreement']:.1f}"]
        assert f"| {name} | {' | '.join(cells)} |" in readme


def test_the_readme_compares_ship_as_the_benchmark_measured_it() -> None:
    peers = committed.table("results/example/benchmarks/peers.csv")
    ours = peers[(peers["model"] == "demo") & (peers["variant"] == "ship/fast")]
    theirs = peers[(peers["model"] == "demo") & (peers["tool"] == "NNCF") & (peers["precision"] == "f32")]
    (ship,) = ours.loc[ours["runtime"] == "ONNX Runtime", "sqnr_db"]
    (nncf,) = theirs["sqnr_db"]
    (agreed,) = {*ours.loc[ours["runtime"] == "ONNX Runtime", "agreement"], *theirs["agreement"]}
    readme = " ".join(committed.text("README.md").split())
    assert f"output SQNR of **{ship:.2f} dB**" in readme
    assert f"NNCF's model of the same calibration images **{nncf:.2f} dB**" in readme
    assert f"both agree with FP32 on {agreed:.1f} % of the test images" in readme


def test_random_inputs_ended_as_the_page_says() -> None:
    page = committed.text("docs/hostile_input.md")
    table = committed.table("results/example/benchmarks/fuzz.csv")
    assert table["inputs"].sum() >= 100_000
    for row in table.itertuples():
        other = row.other_errors + row.crashes + row.over_10_s
        cells = [f"{row.inputs:,}", f"{row.read:,}", f"{row.refused:,}", f"{other}", f"{row.slowest_s:.2f}"]
        memory = f"{row.memory_first_mb} to {row.memory_last_mb}"
        assert f"| {row.kind} | {' | '.join(cells)} | {memory} |" in page


def test_the_run_through_slurm_gave_what_the_page_says() -> None:
    page = committed.text("docs/clusters.md")
    local, through, disturbed = committed.table("results/example/benchmarks/slurm.csv").to_dict("records")
    assert (disturbed["cancelled"], disturbed["drained"]) == ("calibrate", "n2")
    assert f"| without Slurm | {local['jobs']} | – | {local['seconds']} | – |" in page
    for said, row in (("through Slurm", through), ("then the second node was drained", disturbed)):
        assert row["differing_files"] == 0
        assert f"{said} | {row['jobs']} | {row['slurm_jobs']} | {row['seconds']} | 0 |" in page


def test_runs_with_other_kernels_differ_as_the_page_says() -> None:
    page = committed.text("docs/workflow.md")
    table = committed.table("results/example/benchmarks/numerics.csv", index_col="run")
    assert set(table["kernels"]) == {"AVX512", "AVX2", "DEFAULT"}
    for row in table.iloc[1:].itertuples():  # the first is what the others are compared with
        points = f"{row.top1_points:.2f} | {row.agreement_points:.2f}"
        decibels = f"{row.sqnr_db:.3f} | {row.operator_db:.3f}"
        cells = f"{row.differing:.0f} | {row.fp32_logits:.1e} | {row.scales:.1e} | {points} | {decibels}"
        assert f"| {row.Index} | {cells} | {row.verdict} |" in page
        assert (row.verdict, row.results) == ("no difference beyond noise", 67)
    assert 127 * table["scales"].max() < 1 / 50


def test_when_int8_pays_was_measured() -> None:
    times = committed.table("results/example/benchmarks/latency.csv")
    times = times[
        (times["model"] == "demo") & (times["runtime"] == "OpenVINO") & (times["precision"] == "bf16")
    ]
    median = times.set_index(["batch", "variant"])["median_ms"]
    one, eight = (median[batch, "FP32"] / median[batch, "ship/fast"] for batch in (1, 8))
    page = " ".join(committed.text("docs/choosing.md").split())
    assert f"**{one:.2f}** times as fast as plain bf16 at batch 1 and **{eight:.2f}** at batch 8" in page
    machine = json.loads(committed.text("results/example/benchmarks/demo/machine.json"))
    instructions = " ".join(machine["flags"])
    assert "vnni" in instructions
    assert "amx" not in instructions


def test_scales_of_weights_cost_the_time_that_the_page_says() -> None:
    times = committed.table("results/example/benchmarks/latency.csv")
    times = times[times["precision"] == "f32"]
    median = times.set_index(["variant", "model", "batch", "runtime"])["median_ms"]
    more = (median["ship/fast"] / median["vanilla/fast"] - 1).max()
    assert f"takes up to {more:.0%} more time".replace("%", " %") in " ".join(
        committed.text("docs/int8.md").split()
    )


def test_outlier_channels_cost_what_the_page_says() -> None:
    peers = committed.table("results/example/benchmarks/peers.csv")
    peers = peers[peers["precision"] == "f32"]
    found = peers.set_index(["tool", "variant", "runtime", "model"])["sqnr_db"].sort_index()
    page = committed.text("docs/choosing.md")
    rows = re.findall(r"^\| (\S.*) \| (\d\S+) \| (\d\S+) \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for names, plain, stretched in rows:
        tool, variant, runtime = (each.replace("`, `", "/").strip("`") for each in names.split(" | "))
        own = found[tool, variant, runtime]
        assert (f"{own['demo']:.2f}", f"{own['stretched-demo']:.2f}") == (plain, stretched)
    ours, nncf = found["ptq2themoon", "ship/fast", "ONNX Runtime"], found["NNCF", "mixed preset", "OpenVINO"]
    assert all(ours[model] > nncf[model] + 1 for model in ("demo", "stretched-demo"))


def test_memory_of_a_calibration_is_that_of_the_table_and_does_not_grow() -> None:
    table = committed.table("results/example/benchmarks/calibration_memory.csv")
    page = committed.text("docs/benchmarks.md")
    for recipe, rows in table.groupby("recipe"):
        assert rows["images"].tolist() == [8, 32, 128]
        assert f"| `{recipe}` | {' | '.join(map(str, rows['memory_mb']))} |" in page
        assert rows["memory_mb"].max() < 1.2 * rows["memory_mb"].min()


def test_memory_of_a_calibration_of_many_images_is_flat_or_ends_at_the_limit() -> None:
    page = committed.text("docs/clusters.md")
    for recipe, rows in committed.table("results/example/benchmarks/calibration_memory_images.csv").groupby(
        "recipe"
    ):
        few, _, many = rows["memory_mb"]
        assert rows["images"].tolist() == [100, 1_000, 10_000]
        assert f"| `{recipe}` | {' | '.join(map(str, rows['memory_mb']))} |" in page
        assert many - few < (1024 if recipe in {"gptq", "erq", "ship"} else 20)


def test_the_page_of_the_leaderboard_says_what_the_table_says() -> None:
    """The section on the embedded model, each sentence of it that can be false."""
    table = committed.table("results/example/leaderboard/leaderboard.csv")
    rows = table[(table["protocol"] == "products") & (table["model"] == "demo")].set_index(["bits", "recipe"])
    for bits in ("w8a8", "w6a6", "w4a8"):
        real = rows.loc[bits].drop("psaq_vit", errors="ignore")
        assert set(real["fp32_verdict"]) == {"no difference"}
    plain = rows.xs("papers", level="recipe")
    below = {("w3a3", "apot"), ("w4a8", "rotation"), ("w8a8", "psaq_vit"), ("w4a4", "mixed_precision")}
    assert {*rows.index[rows["base_verdict"] == "worse"]} == below
    chance = rows.loc["w4a4", "mixed_precision"]
    assert round(chance["base_p"], 2) == 0.03
    assert chance["logits_sqnr_db"] == pytest.approx(plain.loc["w4a4", "logits_sqnr_db"], abs=0.2)
    assert rows.loc["w8a8", "psaq_vit"]["base_change"] == pytest.approx(-1.5, abs=0.3)
    ahead = ["noisyquant", "repq_vit", "liu2021", "adalog", "erq", "ptq4vit"]
    narrow, narrowest = (rows.loc[bits].loc[ahead] for bits in ("w4a4", "w3a3"))
    assert (narrow["logits_sqnr_db"] - plain.loc["w4a4", "logits_sqnr_db"]).min() > 5
    assert narrow["top1"].min() > plain.loc["w4a4", "top1"]
    assert narrowest["base_change"].between(7, 12).all()
    assert set(rows.loc["w3a3"].loc[["gptq", "smoothquant", "ocs", "evol_q"], "base_verdict"]) == {
        "no difference"
    }
    gained = rows.loc["w4a8", "mixed_precision"]["logits_sqnr_db"] - plain.loc["w4a8", "logits_sqnr_db"]
    assert gained == pytest.approx(4, abs=0.5)
    assert rows.loc["w4a8", "mixed_precision"]["base_verdict"] == "no difference"
    every = table[table["protocol"] == "all-operators"].set_index(["bits", "recipe"])
    assert set(pd.concat([every.loc["w8a8"], every.loc["w6a6"]])["fp32_verdict"]) == {"no difference"}
    assert (every.loc["w4a4"]["fp32_change"] < -20).all()


def test_what_learning_brings_is_what_the_table_says() -> None:
    table = committed.table("results/example/leaderboard/leaderboard.csv")
    table = table[(table["protocol"] == "products") & (table["bits"] == "w3a3")].set_index("recipe")
    page = committed.text("docs/leaderboard.md")
    shown = re.findall(r"^\| `(\w+)`: .* \| (\S+) ± (\S+) \| (\S+) ± (\S+) \|$", page, re.MULTILINE)
    assert len(shown) == 9
    names = ("logits_sqnr_db", "logits_sqnr_db_std", "top1", "top1_std")
    for recipe, *figures in shown:
        assert figures == [f"{table.loc[recipe, name]:.2f}" for name in names]
    learned = table[table["methods"].str.contains("(quick)", regex=False, na=False)]
    assert set(learned["base_verdict"]) == {"better"}
    assert learned["base_change"].between(8, 12).all()
    assert set(table["best"].dropna()) == {"liu2021"}
    level = table[table["best_verdict"] == "no difference"]
    assert len(level) == 7
    assert len(set(level.index) & set(learned.index)) == 4
    sqnr, deviation = table["logits_sqnr_db"], table["logits_sqnr_db_std"]
    assert sqnr["qdrop_searched"] - sqnr["liu2021"] > 2 > 5 * max(deviation[["qdrop_searched", "liu2021"]])
    assert abs(sqnr["qdrop"] - sqnr[["aphq_vit", "fima_q"]]).max() < 1
    assert sqnr["brecq"] < sqnr["qdrop"] - 2
    costs = committed.table("results/example/leaderboard/cost.csv")
    assert costs["seconds"].max() < 20 * 60


def test_sources_of_images_reach_what_the_page_says() -> None:
    table = committed.table("results/example/demo/data_free/data_free.csv").set_index(["recipe", "bits"])
    sqnr, top1, fp32 = table["logits_sqnr_db"], table["top1"], table["fp32_top1"]
    assert round(sqnr["psaq_vit_pixels", "w8a8"]) == 38
    assert round(sqnr["papers", "w8a8"]) == 42
    assert 1.5 < (fp32 - top1)["psaq_vit", "w8a8"] < 2.5
    others = [("psaq_vit_pixels", "w8a8"), ("psaq_vit_v2", "w4a8"), ("psaq_vit_noise", "w8a8")]
    assert (fp32 - top1)[others].max() < 0.3


def test_more_iterations_bring_what_the_page_says() -> None:
    page = " ".join(committed.text("docs/leaderboard.md").split())
    curves = {}
    for recipe in ("qdrop", "adaround"):
        table = committed.table(f"results/example/demo/learning_curve/{recipe}-n32-s0.csv")
        curves[recipe] = table.set_index("iterations")
        sqnr, top1 = curves[recipe]["logits_sqnr_db"], curves[recipe]["top1"]
        assert f"({sqnr[100]:.2f} to {sqnr[300]:.2f} dB)" in page
        assert top1[10] - top1[0] > top1[[30, 100, 300]].max() - top1[10]
    assert curves["qdrop"]["top1"][300] <= curves["qdrop"]["top1"][100]


def test_the_sizes_in_git_that_the_docs_claim_were_counted() -> None:
    sizes = json.loads(committed.text("docs/tracked_size.json"))
    page = committed.text("docs/results.md")
    folders = {"results": "results", "the embedded model and its images": "resources"}
    for row, folder in folders.items():
        cells = " | ".join(f"{sizes[when][folder] / 1e6:.1f}" for when in ("before", "after"))
        assert f"| {row} | {cells} |" in page
    before, after = (sum(sizes[when].values()) for when in ("before", "after"))
    assert f"| everything | {before / 1e6:.1f} | {after / 1e6:.1f} |" in page
    assert sizes["after"]["results"] < sizes["before"]["results"] / 2


def test_the_committed_example_is_small() -> None:
    """A figure or table that grows beyond this is drawn or kept otherwise (docs/results.md)."""
    sizes = {
        name: len(committed.read(name)) for name in committed.names("results/example/**/*") if "." in name
    }
    assert {name: size for name, size in sizes.items() if size > 300_000} == {}
    assert sum(sizes.values()) < 7_000_000


def test_the_coverage_that_the_docs_claim_was_measured() -> None:
    figure = json.loads(committed.text("docs/coverage.json"))
    assert f"**{figure['percent']} %** of the library's lines" in committed.text("docs/contributing.md")


def test_the_glossary_has_every_figure_of_the_summary_and_every_mode() -> None:
    page = committed.text("docs/glossary.md").lower()
    heads = [head for head, _ in METRICS.values() if "ONNX Runtime" not in head and "drop" not in head]
    words = [re.sub(r" with fp32| \(.*", "", head.lower()) for head in heads]
    assert [word for word in words if word not in ("loss", "output cosine") and word not in page] == []
    assert all(f"**{mode}**" in page for mode in MODES)


def test_the_recipes_to_choose_from_exist() -> None:
    rows = re.findall(r"^\| .+? \| (.+?) \| ", committed.text("docs/choosing.md"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)} - {"fast"}
    assert {"ship", "papers", "vanilla"} <= named
    assert [name for name in named if not (ROOT / f"recipes/{name}.yaml").is_file()] == []


def test_every_page_is_linked_from_the_readme() -> None:
    readme = committed.text("README.md")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name})" not in readme] == []
