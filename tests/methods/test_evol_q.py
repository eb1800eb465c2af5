"""Evol-Q: what a search on the whole model finds, never a worse loss, and no look at evaluation images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_methods import Case, recipe, sqnr
from tiny_stages import command, process, run_stage, write_inputs

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.methods.evol_q import EvolQSettings, Search, loss_of
from ptq2themoon.pipeline import quantize
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Quantizer, Uniform
from ptq2themoon.quantize.tensors import QuantizedTensor, Slot
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.recipes import Recipe

BITS = (4, 4)
LOSSES = get_args(EvolQSettings.model_fields["loss"].annotation)
SOFTMAX: dict[str, Any] = {
    "select": {"role": "attn_context", "operand": "input", "position": 0}, "kind": "log_sqrt2"
}  # fmt: skip
NOTHING: dict[str, Any] = {"select": {}, "quantize": False}


def evolved(*rules: dict[str, Any], base: str = "papers", **settings: Any) -> Recipe:
    return recipe(base, *rules, methods=[{"name": "evol_q", **settings}])


def quantizers(model: QuantizedModel) -> dict[Slot, Quantizer]:
    return {slot: tensor.ready() for slot, tensor in model.slots()}


def blocks_of(model: QuantizedModel) -> dict[str, int | None]:
    return {operator.name: operator.block for operator in model.operators}


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[Search]:
    """All searches of a test, filled while it runs."""
    kept: list[Search] = []
    plain: Callable[[Search], None] = Search.run

    def run(search: Search) -> None:
        kept.append(search)
        plain(search)

    monkeypatch.setattr(Search, "run", run)
    return kept


# The losses ---------------------------------------------------------------------------------------


def written_out(found: np.ndarray, wanted: np.ndarray, loss: str, temperature: float) -> float:
    """Of one batch, sum by sum as the equations have it."""
    terms = []
    for i, output in enumerate(found):
        if loss == "mse":
            terms.append(np.mean((output - wanted[i]) ** 2))
            continue
        cosines = [output @ k / np.sqrt(output @ output) / np.sqrt(k @ k) for k in wanted]
        if loss == "cosine":
            terms.append(1 - cosines[i])
        else:
            shares = np.exp(np.array(cosines) / temperature)
            terms.append(-2 * temperature * np.log(shares[i] / shares.sum()))
    return float(np.mean(terms))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("temperature", [0.1, 3.0])
def test_losses_are_what_the_equations_say(loss: str, temperature: float) -> None:
    random = np.random.default_rng(0)
    found, wanted = random.normal(size=(2, 7, 5))
    value = loss_of(torch.tensor(found), torch.tensor(wanted), loss, temperature, batch=100)
    assert value == pytest.approx(written_out(found, wanted, loss, temperature), rel=1e-12)


def test_images_are_compared_within_their_batch_and_batches_are_even() -> None:
    """Nine images in batches of four at most are three times three, not four, four and one."""
    random = np.random.default_rng(1)
    found, wanted = random.normal(size=(2, 9, 5))
    value = loss_of(torch.tensor(found), torch.tensor(wanted), "contrastive", 0.5, batch=4)
    threes = [written_out(found[i : i + 3], wanted[i : i + 3], "contrastive", 0.5) for i in (0, 3, 6)]
    assert value == pytest.approx(np.mean(threes), rel=1e-12)


def test_the_contrastive_loss_wants_each_image_apart_from_the_others() -> None:
    wanted = torch.eye(6) + 0.1
    mixed_up = wanted.roll(1, 0)
    alike = wanted.mean(0).expand(6, 6)
    losses = [loss_of(found, wanted, "contrastive", 0.1, 32) for found in (wanted, alike, mixed_up)]
    assert losses == sorted(losses)
    assert losses[0] < 0.1 * losses[1]
    assert loss_of(3 * wanted, wanted, "contrastive", 0.1, 32) == pytest.approx(losses[0])  # angles alone


def test_outputs_that_are_no_numbers_are_the_worst_there_is() -> None:
    broken = torch.full((3, 4), torch.nan)
    assert all(loss_of(broken, torch.ones(3, 4), loss, 1.0, 32) == float("inf") for loss in LOSSES)


# The search ---------------------------------------------------------------------------------------


def searched_plainly(case: Case, base: Recipe, settings: EvolQSettings, seed: int) -> QuantizedModel:
    """The search as the paper tells it: the whole model for each child, nothing kept from before."""
    model = quantize(case.reference, case.operators, base, BITS, case.images.split(8), "cpu", seed)
    blocks, wanted = blocks_of(model), case.floating()
    generator = torch.Generator().manual_seed(seed)

    def loss(group: list[QuantizedTensor], scales: list[torch.Tensor]) -> float:
        for tensor, scale in zip(group, scales, strict=True):
            assert isinstance(tensor.quantizer, Uniform)
            tensor.quantizer = tensor.quantizer.with_scale(scale)
        return loss_of(case.logits(model), wanted, settings.loss, settings.temperature, settings.batch)

    def child_of(parent: list[torch.Tensor]) -> list[torch.Tensor]:
        draws = [torch.rand(s.shape, generator=generator, dtype=torch.float64) for s in parent]
        return [
            (s.double() * (1 + settings.range * (2 * u - 1))).float()
            for s, u in zip(parent, draws, strict=True)
        ]

    for _ in range(settings.passes):
        for block in sorted({b for b in blocks.values() if b is not None}):
            group = [
                t for slot, t in model.slots()
                if blocks[slot.operator] == block
                and (settings.weights if slot.operand == "weight" else settings.activations)
            ]  # fmt: skip
            start = [tensor.ready().scale for tensor in group]
            before = loss(group, start)
            members = [(before, start)]
            for _ in range(settings.population - 1):
                child = child_of(start)
                members.append((loss(group, child), child))
            for _ in range(settings.cycles):
                drawn = torch.randint(len(members), (settings.samples,), generator=generator).tolist()
                child = child_of(min((members[i] for i in drawn), key=lambda m: m[0])[1])
                members.append((loss(group, child), child))
                members.remove(max(members, key=lambda m: m[0]))
            best = min(members, key=lambda m: m[0])
            loss(group, best[1] if best[0] < before else start)
    return model


@pytest.mark.parametrize(
    ("loss", "weights", "activations"),
    [("contrastive", True, False), ("mse", False, True), ("cosine", True, True)],
)
def test_it_finds_what_the_whole_model_finds(vit: Case, loss: Any, weights: bool, activations: bool) -> None:
    settings = EvolQSettings(
        passes=2, loss=loss, weights=weights, activations=activations, range=0.1, batch=8
    )
    wanted = searched_plainly(vit, recipe("papers"), settings, seed=3)
    chosen = evolved(**settings.model_dump())
    found = quantize(vit.reference, vit.operators, chosen, BITS, vit.images.split(8), "cpu", seed=3)
    assert quantizers(found) == quantizers(wanted)
    assert quantizers(found) != quantizers(vit.quantized(recipe("papers"), BITS))


@pytest.mark.parametrize(
    ("family", "base"),
    [("vit", "papers"), ("vit", "vanilla"), ("swin", "papers"), ("swin", "vanilla"), ("mobilevit", "papers")],
)
def test_the_loss_never_rises_and_is_that_of_the_model(
    family: str, base: str, searches: list[Search]
) -> None:
    case = Case.of_family(family)
    loss: Any = "mse" if family == "mobilevit" else "contrastive"  # all its outputs have one direction
    settings = {"passes": 2, "population": 3, "cycles": 3, "temperature": 0.1, "loss": loss}
    chosen = evolved(base=base, activations=True, **settings)
    plain, model = (case.quantized(r, BITS) for r in (recipe(base, methods=[]), chosen))
    (search,) = searches
    assert search.losses == sorted(search.losses, reverse=True)
    assert search.losses[-1] < search.losses[0]
    blocks = {block for block in blocks_of(model).values() if block is not None}
    assert len(search.losses) == 1 + 2 * len(blocks)
    for losses, one in ((search.losses[0], plain), (search.losses[-1], model)):
        logits = case.logits(one)
        assert losses == pytest.approx(loss_of(logits, case.floating(), loss, 0.1, 32), rel=1e-5)


def test_squared_error_falls_where_it_is_the_loss(vit: Case) -> None:
    plain, found = (vit.logits(vit.quantized(r, BITS)) for r in (recipe("papers"), evolved(loss="mse")))
    assert sqnr(found, vit.floating()) > sqnr(plain, vit.floating()) + 0.5


@pytest.mark.parametrize("settings", [{"passes": 0}, {"population": 1, "cycles": 0}])
def test_without_a_pass_or_a_child_it_is_the_plain_recipe_to_the_bit(
    vit: Case, settings: dict[str, int]
) -> None:
    found, plain = (vit.quantized(r, BITS) for r in (evolved(**settings), recipe("papers")))
    assert quantizers(found) == quantizers(plain)
    assert torch.equal(vit.logits(found), vit.logits(plain))


def test_the_seed_decides(vit: Case) -> None:
    found = [
        quantizers(
            quantize(vit.reference, vit.operators, evolved(passes=1), BITS, vit.images.split(8), "cpu", seed)
        )
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize(("weights", "activations"), [(True, False), (False, True), (True, True)])
def test_what_is_not_searched_stays(vit: Case, weights: bool, activations: bool) -> None:
    found = vit.quantized(evolved(SOFTMAX, weights=weights, activations=activations, range=0.1), BITS)
    plain = vit.quantized(recipe("papers", SOFTMAX), BITS)
    blocks, before = blocks_of(found), quantizers(plain)
    changed = {slot for slot, quantizer in quantizers(found).items() if quantizer != before[slot]}
    assert {slot.operand for slot in changed} == {
        name for name, searched in (("weight", weights), ("input", activations)) if searched
    }
    assert {blocks[slot.operator] for slot in changed} == {0, 1}
    for slot in changed:
        one, other = quantizers(found)[slot], before[slot]
        assert isinstance(one, Uniform)
        assert isinstance(other, Uniform)
        assert torch.equal(one.zero_point, other.zero_point)
        assert not one.scale.is_inference()
        if one.scale.ndim:
            assert len({*(one.scale / other.scale).tolist()}) == len(one.scale)  # each has its own draw
    assert not found.rewrite
    assert not found.changes


def test_a_tensor_quantized_alike_in_several_places_stays_so(vit: Case) -> None:
    """By the operator that makes it and those that read it: no value is rounded on two grids."""
    chosen = evolved(activations=True, weights=False, base="vanilla", passes=1, loss="mse")
    plain, found = (quantizers(vit.quantized(r, BITS)) for r in (recipe("vanilla", methods=[]), chosen))
    shared: dict[int, list[Slot]] = {}
    for slot, quantizer in plain.items():
        shared.setdefault(id(quantizer), []).append(slot)
    several = [slots for slots in shared.values() if len(slots) > 1]
    assert any(found[slots[0]] != plain[slots[0]] for slots in several)
    assert all(len({found[slot] for slot in slots}) == 1 for slots in several)


def test_it_runs_on_the_same_integer_kernels(vit: Case) -> None:
    placements = [
        deploy(m.edited, m.quantized, "fast").placements
        for m in (vit.quantized(evolved(activations=True)), vit.quantized(recipe("papers")))
    ]
    assert {n: p.runs for n, p in placements[0].items()} == {n: p.runs for n, p in placements[1].items()}


# Evaluation images --------------------------------------------------------------------------------

# Prints each file that Python opens while a script runs.
WATCHED = """
import runpy, sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("\\n".join(opened))
"""


def watched(folder: Path, stage: str, **changes: Any) -> list[str]:
    """Files that a stage's own script opens, in a process of its own."""
    ended = process("-c", WATCHED, *command(stage, **changes), cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_no_file_of_evaluation_is_opened(tmp_path: Path) -> None:
    """The stage's own script, where these files lie beside it, and where there are none.

    An audit sees what Python opens. Compiled code is not seen, but cannot read what is not there.
    """
    there, gone = write_inputs(tmp_path / "there"), tmp_path / "gone"
    for stage in ("export", "draw_calibration", "fuse"):
        ended = run_stage(there, stage)
        assert ended.status == 0, ended.err
    seen = {Path(name).name for name in watched(there, "list_evaluation")}
    assert "evaluation.safetensors" in seen  # a look at them is seen
    assert any("evaluation.csv" in name for name in seen)  # by the name that it has until it is whole
    shutil.copytree(there, gone, symlinks=True)
    chosen = {"recipe": "recipes/evol_q.yaml", "bits": "w4a4", "batch_size": 24}
    opened = watched(there, "calibrate", **chosen)
    assert {"evol_q.yaml", "calibration.safetensors"} <= {Path(name).name for name in opened}
    assert [name for name in opened if "evaluation" in Path(name).name] == []

    for path in gone.rglob("*evaluation*"):
        path.unlink()
    assert not [path for path in watched(gone, "calibrate", **chosen) if "evaluation" in Path(path).name]
    for name in ("qparams.json", "qparams.safetensors"):
        assert (gone / "out/q" / name).read_bytes() == (there / "out/q" / name).read_bytes()


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "rules", "said"),
    [
        ({}, [NOTHING, {"select": {"role": "softmax", "operand": "input"}, "quantize": True}], "weights"),
        ({}, [{"select": {"operand": "weight"}, "kind": "apot"}], "weights"),
        ({"weights": False, "activations": True}, [{"select": {"operand": "input"}, "quantize": False}],
         "activations"),
        ({}, [NOTHING, {"select": {"role": "head", "operand": "weight"}, "quantize": True}], "weights"),
    ],
)  # fmt: skip
def test_a_recipe_that_leaves_it_nothing_to_do_is_refused(
    vit: Case, settings: dict[str, bool], rules: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(UserError) as error:
        vit.quantized(evolved(*rules, **settings))
    assert str(error.value) == (
        f"evol_q: the recipe quantizes no {said} of transformer blocks with kind uniform; "
        "leave the method out"
    )


def test_one_image_has_nothing_to_be_compared_with(vit: Case) -> None:
    for loss, refused in (("contrastive", True), ("mse", False)):
        chosen = evolved(loss=loss, passes=1)
        images = vit.images[:1].split(1)
        if refused:
            with pytest.raises(UserError, match=r"^evol_q: the contrastive loss compares images; .* least$"):
                quantize(vit.reference, vit.operators, chosen, BITS, images, "cpu")
        else:
            quantize(vit.reference, vit.operators, chosen, BITS, images, "cpu")


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"passes": -1}, "passes"), ({"population": 0}, "population"), ({"samples": 0}, "samples"),
     ({"range": 1.0}, "range"), ({"range": 0.0}, "range"), ({"temperature": 0.0}, "temperature"),
     ({"batch": 1}, "batch"), ({"loss": "kl"}, "loss"), ({"weights": False}, "weights or activations")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EvolQSettings(**settings)
