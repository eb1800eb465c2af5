"""Tiny transformers with query, key and value as layers of their own, and variants of their parts."""

from __future__ import annotations

import torch
from tiny_models import randomised
from torch import nn


class SeparateBlock(nn.Module):
    """As transformers writes it: query, key and value apart, scores divided."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.value, self.key, self.query = (nn.Linear(width, width) for _ in range(3))
        self.dense, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 64), nn.Linear(64, width)
        self.act = nn.GELU()

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], -1, self.heads, self.size).transpose(1, 2)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query(x), self.key(x), self.value(x)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(tensor) for tensor in self.project(self.before(x)))
        weights = (q @ k.transpose(-1, -2) / self.size**0.5).softmax(-1)
        context = (weights @ v).transpose(1, 2).reshape(x.shape[0], -1, self.heads * self.size)
        return self.dense(context)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attend(x) + x
        return self.down(self.act(self.up(self.after(x)))) + x


class Separate(nn.Module):
    def __init__(
        self, block: type[SeparateBlock] = SeparateBlock, classifier: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.embed, self.position = nn.Conv2d(1, 32, 4, 4), nn.Parameter(torch.zeros(1, 17, 32))
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        self.blocks = nn.Sequential(block(), block())
        self.last, self.head = nn.LayerNorm(32), classifier or nn.Linear(32, 5)
        randomised(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.last(self.blocks(x))[:, 0])


class SharedKeyValue(SeparateBlock):
    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query(x), self.key(x), self.key(x)


class NoProjection(SeparateBlock):
    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x, self.key(x), self.value(x)


class OnlyValue(SeparateBlock):
    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x, x, self.value(x)


class GatedKeys(SeparateBlock):
    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.query(x), self.key(x).sigmoid(), self.value(x)


class Shifted(nn.Module):
    """A linear layer with a bias of a shape that is not fused."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.shift = nn.Linear(32, 32, bias=False), nn.Parameter(torch.zeros(1, 1, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.shift


class BiasApart(SeparateBlock):
    def __init__(self) -> None:
        super().__init__()
        self.dense = Shifted()


class Gate(nn.Module):
    """Weights that a layer makes, not a product of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(32, 32), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.gate(x).reshape(-1, 4, 8).softmax(-1)
        return self.head((weights @ x.reshape(-1, 8, 4)).flatten(1))


class Correlation(nn.Module):
    """A product of activations whose softmax weighs no values."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((x.unsqueeze(2) @ x.unsqueeze(1)).softmax(-1).amax(1))


class Scaled(SeparateBlock):
    """With LayerScale, as DINOv2 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(32)), nn.Parameter(torch.ones(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attend(x) * self.first + x
        return self.down(self.act(self.up(self.after(x)))) * self.second + x


class Dino(nn.Module):
    """DINOv2 as transformers writes it, for images of 56 x 56: registers, LayerScale, no classifier."""

    def __init__(self, depth: int = 7, registers: int = 4) -> None:
        super().__init__()
        self.embed, self.position = nn.Conv2d(3, 32, 14, 14), nn.Parameter(torch.zeros(1, 17, 32))
        self.token, self.registers = (nn.Parameter(torch.zeros(1, n, 32)) for n in (1, registers))
        self.blocks, self.last = nn.Sequential(*(Scaled() for _ in range(depth))), nn.LayerNorm(32)
        randomised(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1) + self.position
        x = torch.cat([x[:, :1], self.registers.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)
        return self.last(self.blocks(x))[:, 0]


class CappedScores(SeparateBlock):
    """Scores bounded by a tanh, and by numbers."""

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(tensor) for tensor in self.project(self.before(x)))
        scores = (3 * torch.tanh(q @ k.transpose(-1, -2) / 12)).clamp(-2.9, 2.9)
        context = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape[0], -1, self.heads * self.size)
        return self.dense(context)


class HeadsApart(SeparateBlock):
    """Each head by itself, in a loop."""

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for q, k, v in zip(*(t.split(self.size, -1) for t in self.project(self.before(x))), strict=True):
            found.append((q @ k.transpose(-1, -2) / self.size**0.5).softmax(-1) @ v)
        return self.dense(torch.cat(found, -1))


class Difference(SeparateBlock):
    """Differential attention: the second half of the weights of each head is taken away from the first."""

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(self.before(x))
        images, tokens, _ = x.shape
        q, k = (t.view(images, tokens, 2 * self.heads, -1).transpose(1, 2) for t in (q, k))
        weights = (q @ k.transpose(-1, -2) / self.size**0.5).softmax(-1)
        weights = weights.view(images, self.heads, 2, tokens, tokens)
        context = (weights[:, :, 0] - 0.3 * weights[:, :, 1]) @ self.split(v)
        return self.dense(context.transpose(1, 2).reshape(images, tokens, -1))


class TwoSoftmaxes(SeparateBlock):
    """Differential attention of two softmaxes."""

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(tensor) for tensor in self.project(self.before(x)))
        (a, b), (c, d) = q.chunk(2, -1), k.transpose(-1, -2).chunk(2, -2)
        context = (((a @ c).softmax(-1) - 0.3 * (b @ d).softmax(-1)) @ v).transpose(1, 2)
        return self.dense(context.reshape(x.shape[0], -1, self.heads * self.size))


class RotaryHalves(SeparateBlock):
    """A rotary embedding whose halves are turned each by itself, as ONNX's operator does it."""

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(17.0)[:, None] * torch.arange(self.size // 2)
        cos, sin = angles.cos(), angles.sin()

        def turned(x: torch.Tensor) -> torch.Tensor:
            a, b = x.chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        q, k, v = (self.split(tensor) for tensor in self.project(self.before(x)))
        weights = (turned(q) @ turned(k).transpose(-1, -2) / self.size**0.5).softmax(-1)
        return self.dense((weights @ v).transpose(1, 2).reshape(x.shape[0], -1, self.heads * self.size))


class Tamed(nn.Module):
    """Dynamic tanh in place of a LayerNorm."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.slope, self.scale = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.slope * x) * self.scale + self.shift


class Grouped(nn.Module):
    """A GroupNorm in place of a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class TamedBlock(SeparateBlock):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = Tamed(), Tamed()


class GroupedBlock(SeparateBlock):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = Grouped(), Grouped()


class Beside(SeparateBlock):
    """Attention and MLP read one norm, as in ViT-22B."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attend(x) + self.down(self.act(self.up(self.before(x))))


class Slopes(SeparateBlock):
    """An activation of several operators and two ways."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attend(x) + x
        return x + self.down(nn.functional.softsign(self.up(self.after(x))))


class Cut(nn.Module):
    """Patches by a Reshape; a layer reads all pixels of each, between norms or alone."""

    def __init__(self, norms: bool) -> None:
        super().__init__()
        kinds = [nn.LayerNorm(16), nn.Linear(16, 32), nn.LayerNorm(32)]
        self.layers = nn.Sequential(*kinds[slice(None) if norms else slice(1, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = x.reshape(-1, 1, 4, 4, 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 16)
        return self.layers(patches).transpose(1, 2)


class DenseOfHeads(SeparateBlock):
    """Layers [width, heads, size] by Einsum, as JAX has them; heads that talk with each other by one too."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__(width, heads)
        shapes = [(width, heads, self.size)] * 3, [(heads, self.size)] * 3
        self.weights, self.biases = (nn.ParameterList(torch.zeros(s) for s in each) for each in shapes)
        self.talk = nn.Parameter(torch.zeros(heads, heads))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        y = self.before(x)
        q, k, v = (
            torch.einsum("btd,dhk->bthk", y, weight) + bias
            for weight, bias in zip(self.weights, self.biases, strict=True)
        )
        scores = torch.einsum("bqhk,bthk->bhqt", q / self.size**0.5, k)
        weights = torch.einsum("bhqt,hg->bgqt", scores, self.talk).softmax(-1)
        context = torch.einsum("bhqt,bthk->bqhk", weights, v)
        weight = self.dense.weight.reshape(-1, self.heads, self.size)
        return torch.einsum("bqhk,dhk->bqd", context, weight) + self.dense.bias
