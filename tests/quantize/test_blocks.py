"""Trainable segments of a quantized model: the simulation's bits, and straight-through gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from slopes import slope
from tiny_methods import Case, recipe
from tiny_models import TINY, tiny_module
from torch import Tensor, nn
from torch.nn import functional as F

from ptq2themoon.quantize.blocks import Passage, Segment, run_segments, segments
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.quantizers import Uniform, uniform
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.quantize.tensors import Slot

HEADS = TINY["num_heads"]
BLOCKS = {"vit": [0, 1], "swin": [0, 1, 2, 3], "mobilevit": [0, 1, 2]}


@pytest.fixture(scope="module", params=BLOCKS)
def family(request: pytest.FixtureRequest) -> tuple[str, Case]:
    return request.param, Case.of_family(request.param)


# Values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vanilla", "papers", "repq_vit"])
def test_one_after_another_they_are_the_simulation_to_the_bit(family: tuple[str, Case], name: str) -> None:
    _, case = family
    model = case.quantized(recipe(name))
    simulation, images = simulated(model, "cpu"), case.images[:4]
    before = images.clone()
    (output,) = simulation.outputs
    for trainable in (True, False):
        cut = segments(simulation, model.operators, trainable=trainable)
        assert all(bool(segment.program.parameters) <= trainable for segment in cut)
        found = run_segments(cut, {simulation.input_name: images})
        assert torch.equal(found[output], simulation(images))
    assert not torch.equal(found[output], SimulatedModel(model.reference, "cpu")(images))
    assert torch.equal(images, before)


def test_each_block_is_one_segment(family: tuple[str, Case]) -> None:
    name, case = family
    model = case.quantized(recipe("papers"))
    simulation = simulated(model, "cpu")
    found = segments(simulation, model.operators)
    assert [segment.block for segment in found if segment.block is not None] == BLOCKS[name]
    assert (found[0].block, found[-1].block) == (None, None)
    steps = [step.name for segment in found for step in segment.program.steps]
    assert steps == [operation.name for operation in simulation.order]
    of_blocks = {o.name: o.block for o in model.operators if o.block is not None}
    for segment in found:
        blocks = {of_blocks[step.name] for step in segment.program.steps if step.name in of_blocks}
        assert blocks == ({segment.block} if segment.block is not None else set())


def test_without_quantizers_they_are_floating_point(family: tuple[str, Case]) -> None:
    _, case = family
    simulation = SimulatedModel(case.reference, "cpu")
    found = run_segments(segments(simulation, case.operators), {simulation.input_name: case.images[:4]})
    assert torch.equal(found[simulation.outputs[0]], simulation(case.images[:4]))


def test_a_run_changes_none_of_its_inputs(family: tuple[str, Case]) -> None:
    """And training changes the program's parameters alone, not those of the simulation."""
    _, case = family
    model = case.quantized(recipe("vanilla"))
    simulation = simulated(model, "cpu")
    wanted = simulation(case.images[:2])
    known = {simulation.input_name: case.images[:2]}
    for segment in segments(simulation, model.operators):
        kept = {name: known[name].clone() for name in segment.program.read}
        parameters = {key: value.clone() for key, value in segment.program.parameters.items()}
        made = segment(known)
        assert all(torch.equal(known[name], value) for name, value in kept.items())
        assert all(torch.equal(segment.program.parameters[key], v) for key, v in parameters.items())
        assert not any(value.is_inference() for value in made.values())
        known |= made
        for value in segment.program.parameters.values():
            value.zero_()
    assert torch.equal(simulation(case.images[:2]), wanted)


def test_gradients_pass_from_the_last_segment_to_the_images(family: tuple[str, Case]) -> None:
    _, case = family
    model = case.quantized(recipe("repq_vit"))
    simulation = simulated(model, "cpu")
    found = segments(simulation, model.operators)
    for segment in found:
        for value in segment.program.parameters.values():
            value.requires_grad_()
    images = case.images[:2].clone().requires_grad_()
    values = run_segments(found, {simulation.input_name: images})
    values[simulation.outputs[0]].square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    for item in model.quantized:
        for tensor in item.tensors:
            if tensor.operand == "weight":
                (value,) = (
                    s.program.parameters[key]
                    for s in found
                    for key in [f"{item.operator.name}.{tensor.position}"]
                    if key in s.program.parameters
                )
                assert value.grad is not None
                assert torch.isfinite(value.grad).all()
                assert value.grad.abs().sum() > 0, item.operator.name


# A passage -----------------------------------------------------------------------------------------


def passage_of(case: Case, model: QuantizedModel) -> tuple[SimulatedModel, Passage]:
    simulation = simulated(model, "cpu")
    states = [{simulation.input_name: part} for part in case.images[:6].split(3)]
    return simulation, Passage(simulation, model.operators, states)


def longer(model: QuantizedModel, block: int) -> list[Slot]:
    """Make the weights' scales of a block's MLP a tenth longer; which."""
    names = {o.name for o in model.operators if o.block == block and o.role in ("fc1", "fc2")}
    changed = [slot for slot, _ in model.slots() if slot.operator in names and slot.operand == "weight"]
    for slot, tensor in model.slots():
        if slot in changed:
            assert isinstance(tensor.quantizer, Uniform)
            tensor.quantizer = tensor.quantizer.with_scale(1.1 * tensor.quantizer.scale)
    return changed


def test_a_passage_gives_the_models_output_wherever_it_is(family: tuple[str, Case]) -> None:
    _, case = family
    simulation, passage = passage_of(case, case.quantized(recipe("papers"), (4, 4)))
    wanted = torch.cat([simulation(part) for part in case.images[:6].split(3)])
    with torch.inference_mode():
        for at in range(len(passage.segments)):
            assert passage.at == at
            assert torch.equal(passage.output(), wanted)
            needed = {name for segment in passage.segments[at:] for name in segment.program.read}
            assert all(state.keys() <= needed for state in passage._states)  # no more is kept
            passage.advance()


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_new_quantizers_are_in_force_when_it_says_so(name: str) -> None:
    case = Case.of_family(name)
    model = case.quantized(recipe("papers"), (4, 4))
    simulation, passage = passage_of(case, model)
    with torch.inference_mode():
        before = passage.output()
        assert longer(model, block=1)
        assert torch.equal(passage.output(), before)
        passage.renew(i for i, segment in enumerate(passage.segments) if segment.block == 1)
        wanted = torch.cat([simulation(part) for part in case.images[:6].split(3)])
        assert torch.equal(passage.output(), wanted)
        assert not torch.equal(wanted, before)


def test_no_more_is_computed_again_than_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights with another scale are quantized, and nothing before the images' place is run."""
    case = Case.of_family("vit")
    model = case.quantized(recipe("papers"), (4, 4))
    _, passage = passage_of(case, model)
    changed, rounded, ran = longer(model, block=1), [], []
    weights = {id(t.quantizer): slot for slot, t in model.slots() if t.is_parameter}
    quantize, run = Uniform.__call__, Segment.__call__

    def count(quantizer: Uniform, value: Tensor) -> Tensor:
        if id(quantizer) in weights:
            rounded.append(weights[id(quantizer)])
        return quantize(quantizer, value)

    def note(segment: Segment, values: dict[str, Tensor]) -> dict[str, Tensor]:
        ran.append(segment.block)
        return run(segment, values)

    monkeypatch.setattr(Uniform, "__call__", count)
    monkeypatch.setattr(Segment, "__call__", note)
    with torch.inference_mode():
        passage.advance()
        passage.advance()
        assert ran == [None, None, 0, 0]  # two parts each
        ran.clear()
        passage.renew(range(len(passage.segments)))
        passage.output()
    assert sorted(rounded) == sorted(changed)
    assert ran == [1, None] * 2


# Gradients, in float64 so that no rounding falls on another side ---------------------------------


@dataclass
class Trained:
    """A quantized ViT of two blocks as segments in float64, with gradients of weights and of scales."""

    module: nn.Module
    model: QuantizedModel
    found: list[Segment]
    scales: dict[Slot, Tensor]
    images: Tensor
    input: str
    output: str

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {key: value for segment in self.found for key, value in segment.program.parameters.items()}

    def loss(self) -> Tensor:
        return self.of(run_segments(self.found, {self.input: self.images})[self.output])

    def of(self, logits: Tensor) -> Tensor:
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        return (logits * weights).sum()


def trained(quantized: bool) -> Trained:
    module = tiny_module()
    case = Case.of(module, (1, 16, 16))
    model = case.quantized(recipe("papers"), (4, 4))
    simulation = simulated(model, "cpu") if quantized else SimulatedModel(case.reference, "cpu")
    found = segments(simulation, model.operators)
    for segment in found:
        for key, value in segment.program.parameters.items():
            segment.program.parameters[key] = value.double().requires_grad_()
    scales = {}
    for slot, tensor in model.slots():
        scales[slot] = tensor.ready().scale = tensor.ready().scale.double().requires_grad_()
    images = case.images[:3].double()
    return Trained(
        module.double(), model, found, scales, images, simulation.input_name, simulation.outputs[0]
    )


@pytest.fixture
def papers() -> Trained:
    return trained(quantized=True)


class FakeQuantize(torch.autograd.Function):
    """Gradients written out, as LSQ has them (arXiv 1902.08153); a code at an end is not clipped."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward(value, scale, low, high)
        return (value / scale).round().clamp(low, high) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        value, scale, low, high = ctx.saved_tensors
        steps = value / scale
        inside = (steps.round() >= low) & (steps.round() <= high)
        of_scale = torch.where(inside, steps.round() - steps, steps.round().clamp(low, high)) * gradient
        return gradient * inside, of_scale.sum_to_size(scale.shape), None, None


class Plain:
    """timm's ViT written out in torch, quantized where the papers' protocol does."""

    def __init__(self, module: nn.Module, model: QuantizedModel) -> None:
        self.module: Any = module
        self.scales: dict[Slot, Tensor] = {}
        self.quantizers = {}
        for slot, tensor in model.slots():
            quantizer = tensor.ready()
            assert isinstance(quantizer, Uniform)
            self.quantizers[slot] = quantizer
            self.scales[slot] = quantizer.scale.detach().clone().requires_grad_()

    def quantized(self, name: str, position: int, value: Tensor, *, weight: bool = False) -> Tensor:
        """An input of an operator; a weight has a scale for each index of its first axis, as in torch."""
        slot = Slot(name, "weight" if weight else "input", position)
        quantizer, scale = self.quantizers[slot], self.scales[slot]
        low, high = quantizer.lowest.double(), quantizer.highest.double()
        if scale.ndim:
            scale, low, high = (each.reshape(-1, *[1] * (value.ndim - 1)) for each in (scale, low, high))
        found: Tensor = FakeQuantize.apply(value, scale, low, high)
        return found

    def linear(self, name: str, x: Tensor, layer: nn.Linear) -> Tensor:
        weight = self.quantized(name, 1, layer.weight, weight=True)
        return F.linear(self.quantized(name, 0, x), weight, layer.bias)

    def attention(self, name: str, x: Tensor, module: Any) -> Tensor:
        images, tokens, width = x.shape
        qkv = self.linear(f"{name}.qkv", x, module.qkv)
        q, k, v = qkv.reshape(images, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        q = self.quantized(f"{name}.attn_scores", 0, q * module.scale)
        k = self.quantized(f"{name}.attn_scores", 1, k.transpose(-2, -1))
        attention = self.quantized(f"{name}.attn_context", 0, (q @ k).softmax(-1))
        context = attention @ self.quantized(f"{name}.attn_context", 1, v)
        return self.linear(f"{name}.proj", context.transpose(1, 2).flatten(2), module.proj)

    def __call__(self, images: Tensor) -> Tensor:
        vit = self.module
        projection = vit.patch_embed.proj
        x = F.conv2d(
            self.quantized("patch_embed", 0, images),
            self.quantized("patch_embed", 1, projection.weight, weight=True),
            projection.bias,
            stride=projection.stride,
        )
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + vit.pos_embed
        for number, block in enumerate(vit.blocks):
            name = f"blocks.{number}"
            x = x + self.attention(name, block.norm1(x), block.attn)
            y = F.gelu(self.linear(f"{name}.fc1", block.norm2(x), block.mlp.fc1))
            x = x + self.linear(f"{name}.fc2", y, block.mlp.fc2)
        return self.linear("head", vit.norm(x)[:, 0], vit.head)


def operators_of(module: Any) -> Iterator[tuple[str, Any]]:
    """(operator, its module) of every layer with parameters."""
    yield from (("patch_embed", module.patch_embed.proj), ("norm", module.norm), ("head", module.head))
    for number, block in enumerate(module.blocks):
        parts = {"norm1": block.norm1, "qkv": block.attn.qkv, "proj": block.attn.proj}
        parts |= {"norm2": block.norm2, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
        yield from ((f"blocks.{number}.{role}", part) for role, part in parts.items())


def close(found: Tensor | None, wanted: Tensor | None, what: object) -> None:
    assert found is not None, what
    assert wanted is not None, what
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9, msg=f"{what}")
    assert found.abs().sum() > 0, what


def test_gradients_are_those_of_plain_torch_modules(papers: Trained) -> None:
    plain = Plain(papers.module, papers.model)
    wanted, found = papers.of(plain(papers.images)), papers.loss()
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    wanted.backward()
    found.backward()
    types = {operator.name: operator.type for operator in papers.model.operators}
    for name, part in operators_of(papers.module):
        weight = papers.parameters[f"{name}.1"].grad
        assert weight is not None
        fused = types[name] == "PPQBiasFusedMatMul"  # has its weights as [in, out]
        close(weight.T if fused else weight, part.weight.grad, name)
        close(papers.parameters[f"{name}.2"].grad, part.bias.grad, name)
    assert papers.scales.keys() == plain.scales.keys()
    for slot, scale in papers.scales.items():
        close(scale.grad, plain.scales[slot].grad, slot)


def test_without_quantizers_gradients_are_finite_differences() -> None:
    model = trained(quantized=False)
    model.loss().backward()
    for key, value in model.parameters.items():
        if value.grad is None or not value.numel():
            continue
        index = value.numel() // 2
        found = value.grad.flatten()[index].item()
        assert found == pytest.approx(slope(model.loss, value, index, 1e-6), rel=1e-5, abs=1e-7), key


class Frozen:
    """Rounding as the sum of a value and an offset, which stays what it was in the first run."""

    def __init__(self) -> None:
        self.offsets: list[Tensor] = []
        self.calls = 0
        self.recording = True

    def __call__(self, value: Tensor) -> Tensor:
        if self.recording:
            self.offsets.append((value.round() - value).detach())
        offset = self.offsets[self.calls]
        self.calls += 1
        return value + offset

    def replay(self, loss: Callable[[], Tensor]) -> Tensor:
        self.calls, self.recording = 0, False
        return loss()


def test_with_them_they_are_those_of_a_model_whose_roundings_stay(
    papers: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Straight-through means just this: each rounding adds a constant. Then differences are defined.

    But at the ends of the codes, so there are longer scales here, and a code below that of 0.
    """
    for _, tensor in papers.model.slots():
        quantizer = tensor.ready()
        assert isinstance(quantizer, Uniform)
        with torch.no_grad():
            quantizer.scale.mul_(1.5)
        quantizer.zero_point = quantizer.zero_point.clamp(min=quantizer.quant_min + 1)
    frozen = Frozen()
    monkeypatch.setattr(uniform, "round_straight_through", frozen)
    papers.loss().backward()
    weights = {f"{o.operator.name}.1" for o in papers.model.quantized if o.operator.type != "MatMul"}
    for key in sorted(weights):
        value = papers.parameters[key]
        assert value.grad is not None
        for index in (0, value.numel() // 2):
            wanted = slope(lambda: frozen.replay(papers.loss), value, index, 1e-6)
            assert value.grad.flatten()[index].item() == pytest.approx(wanted, rel=1e-5, abs=1e-7), key
    for slot, scale in papers.scales.items():
        assert scale.grad is not None
        wanted = slope(lambda: frozen.replay(papers.loss), scale, 0, 1e-7)
        assert scale.grad.flatten()[0].item() == pytest.approx(wanted, rel=1e-4, abs=1e-5), slot
