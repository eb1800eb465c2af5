"""What fusion.json tells of attention: softmax, heads, tokens and their grid, per block; the class token."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import onnx
from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph, Shapes, attribute, tensor_shapes
from ptq2themoon.graph.meaning.walk import POOLING_TYPES, Walk
from ptq2themoon.vocabulary.operators import Operator

PatchGrid = tuple[int, int]
READING_TOKENS = ("norm1", "qkv", "q", "qk", "v")  # what keeps the tokens as the stream has them


def attention_facts(fused: onnx.ModelProto, operators: list[Operator]) -> dict[str, Any]:
    """Every block's softmax with heads, tokens, groups of tokens that attend apart (per image), tokens
    before the patches and the patches' grid (null where the tokens make no single grid of patches);
    whether there is a class token, and what is taken for it or why there is none."""
    facts = _Facts(fused, operators)
    blocks = facts.blocks()
    class_token, note = facts.class_token(blocks)
    return {"blocks": blocks, "class_token": class_token, "note": note}


class _Facts:
    def __init__(self, fused: onnx.ModelProto, operators: list[Operator]) -> None:
        self.graph = Graph(fused)
        self.walk = Walk(self.graph)
        self.shapes: Shapes = tensor_shapes(fused, batch=1)
        nodes = {node.name: node for node in self.graph.nodes}
        placed = [operator for operator in operators if operator.role != "other"]
        # The first of a place: where heads stand apart, of several softmaxes.
        self.by_place = {(o.role, o.block): nodes[o.name] for o in reversed(placed)}
        self.apart = Counter(o.block for o in operators if o.role == "softmax")
        self.inside = {o.name for o in operators if o.block is not None}
        self.heads = {o.name for o in operators if o.role == "head"}
        self.count = len(self.apart)

    def _shape(self, node: NodeProto | None) -> tuple[int | str, ...]:
        return self.shapes.get(node.output[0], ()) if node is not None else ()

    def blocks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for block in range(self.count):
            softmax = self.by_place["softmax", block]
            heads, groups = self._heads_and_groups(softmax, block)
            known = self._shape(softmax) and self._is_of_tokens(block)
            tokens = self._shape(softmax)[-1] if known else None
            entry = {"softmax": softmax.name, "heads": heads, "tokens": tokens, "groups": groups}
            prefix, grid = self._patches(block, entry, found[-1] if found else None)
            found.append({**entry, "prefix_tokens": prefix, "grid": grid})
        for entry, stage in zip(found, self._stages(), strict=True):
            entry["stage"] = stage
        return found

    def _stages(self) -> list[int]:
        """Of each block: how often the width of the tokens has changed before it."""
        widths = [self._shape(self.by_place.get(("proj", block)))[-1:] for block in range(self.count)]
        changes = [a != b for a, b in pairwise(widths)]
        return [sum(changes[:block]) for block in range(self.count)]

    def _heads_and_groups(self, softmax: NodeProto, block: int) -> tuple[int | None, int | None]:
        """Of scores [B * groups, heads, T, T], [B, groups, heads, T, T] or [B * groups * heads, T, T]."""
        apart = self._shape(softmax)[:-2]
        sizes = [size for size in apart if isinstance(size, int)]
        if not sizes or len(sizes) < len(apart):
            return None, None
        if len(sizes) > 1:
            return sizes[-1], math.prod(sizes[:-1])
        if self.apart[block] > 1:
            return 1, sizes[0]
        proj, context = self.by_place.get(("proj", block)), self.by_place["attn_context", block]
        width = self.shapes.get(proj.input[0], ())[-1:] if proj is not None else ()
        each = self._shape(context)[-1:]
        if width and each and isinstance(width[0], int) and isinstance(each[0], int):
            heads = width[0] // each[0]
            return (heads, sizes[0] // heads) if heads and sizes[0] % heads == 0 else (None, None)
        return None, None

    def _is_of_tokens(self, block: int) -> bool:
        """Whether tokens attend to each other; in some models channels do, or keys are weighed alone.

        The layer after attention reads channels on the last axis, and so does it in the context.
        """
        scores, context, proj = (
            self.by_place.get((role, block)) for role in ("attn_scores", "attn_context", "proj")
        )
        if scores is None or context is None:
            return False
        if proj is None or proj.op_type == "Conv":
            return True
        node, axes = self.graph.producer(proj.input[0]), {-1}
        while node is not None and node is not context:
            axes = self._before(node, axes)
            node = self.graph.producer(self.walk.data(node))
        return -1 in axes and -2 not in axes

    def _before(self, node: NodeProto, axes: set[int]) -> set[int]:
        """Which axes of what an operator reads become these of what it gives, all counted from the end."""
        old, new = self.shapes.get(node.input[0], ()), self._shape(node)
        if node.op_type == "Transpose":
            perm = attribute(node, "perm", list(range(len(old)))[::-1])
            return {perm[axis] - len(old) for axis in axes}
        if node.op_type != "Reshape" or not old or not new or old[-1] == new[-1]:
            return axes & {-1, -2} if node.op_type == "Reshape" else axes
        for count in range(1, len(old) + 1):
            if axes == {-1} and math.prod(old[-count:]) == new[-1]:
                return set(range(-count, 0))
        return axes

    def _patches(
        self, block: int, entry: dict[str, Any], before: dict[str, Any] | None
    ) -> tuple[int, PatchGrid | None]:
        """Tokens before the patches, and the patches' rows and columns."""
        tokens, groups = entry["tokens"], entry["groups"]
        norm = next(filter(None, (self.by_place.get((role, block)) for role in READING_TOKENS)), None)
        if not isinstance(tokens, int) or self._shape(self.by_place["softmax", block])[-2] != tokens:
            return 0, None
        own = self._own_grid(norm) if groups == 1 else self._unfolded_grid(norm, groups)
        if own is not None and math.prod(own) == tokens:
            return 0, own
        embedded = self._embedded_grid()
        if groups == 1 and embedded is not None and len(self._shape(norm)) == 3:
            prefix = tokens - math.prod(embedded)
            return (prefix, embedded) if prefix >= 0 else (0, None)
        same = before is not None and (before["tokens"], before["groups"]) == (tokens, groups)
        if before is not None and before["grid"] and same and groups and groups > 1:
            return 0, before["grid"]
        return 0, None

    def _embedded_grid(self) -> PatchGrid | None:
        """Of the convolution that makes patches, or of the layer that reads all pixels of each patch."""
        node, image = self.by_place.get(("patch_embed", None)), self.shapes[self.graph.inputs[0]]
        shape = self._shape(node)
        if len(shape) == 4 or node is None or not self.walk.is_matrix(node):
            return _grid(shape[2:]) if len(shape) == 4 else None
        channels, height, width = (int(size) for size in image[1:])
        side = math.isqrt(self.graph.constants[node.input[1]].shape[0] // channels)
        grid = (height // side, width // side) if side else (0, 0)
        whole = (grid[0] * side, grid[1] * side) == (height, width)
        pixels = self.graph.constants[node.input[1]].shape[0] == side * side * channels
        return grid if whole and pixels and shape[1:2] == (math.prod(grid),) else None

    def _own_grid(self, norm: NodeProto | None) -> PatchGrid | None:
        """Of a block whose tokens keep their rows and columns: [B, rows, columns, channels]."""
        shape = self._shape(norm)
        return _grid(shape[1:3]) if len(shape) == 4 else None

    def _unfolded_grid(self, norm: NodeProto | None, groups: int | None) -> PatchGrid | None:
        """Of patches cut from a feature map (MobileViT): pixels of one place in their patch attend together.

        The map [B, C, H, W] is cut by a Reshape to [B * C * rows, h, columns, w] with h * w groups.
        """
        passed: list[NodeProto] = []

        def through(node: NodeProto) -> bool:
            passed.append(node)
            return self.walk.is_movement(node)

        source = self.walk.back(norm.input[0], through) if norm is not None else None
        image = self._shape(source)
        if len(image) != 4 or not all(isinstance(size, int) for size in image):
            return None
        _, channels, height, width = (int(size) for size in image)
        for node in passed:
            shape = self._shape(node)
            sizes = [size for size in shape if isinstance(size, int)]
            if node.op_type != "Reshape" or len(sizes) < len(shape) or len(sizes) not in (4, 5, 6):
                continue
            *lead, h, columns, w = sizes
            if h * w == groups and columns * w == width and math.prod(lead) * h == channels * height:
                return height // h, columns
        return None

    def class_token(self, blocks: list[dict[str, Any]]) -> tuple[bool, str]:
        """Whether the output reads the first of the tokens before the patches, and a sentence on it."""
        last = blocks[-1] if blocks else {"tokens": None, "prefix_tokens": 0, "groups": None, "grid": None}
        picked, pooled = self._read_tokens(last["tokens"])
        prefix = self._tokens_before_patches(blocks)
        if 0 in picked and prefix:
            return True, _class_token_note(prefix, picked)
        if pooled:
            others = f"; none of the {prefix} tokens before the patches is singled out" if prefix else ""
            return False, f"no class token: the output is a mean over tokens{others}"
        if 0 in picked:
            return False, (
                "no class token: the output reads the first token, but which tokens are patches cannot be "
                "told from the patch embedding"
            )
        return False, "no class token: the output singles out no token"

    def _tokens_before_patches(self, blocks: list[dict[str, Any]]) -> int:
        """Of the last block; where it does not tell, of another of as many tokens, or of the embedding."""
        if not blocks:
            return 0
        tokens = blocks[-1]["tokens"]
        known = [entry["prefix_tokens"] for entry in blocks if entry["tokens"] == tokens and entry["grid"]]
        embedded = self._embedded_grid()
        if not known and embedded is not None and isinstance(tokens, int) and blocks[-1]["groups"] == 1:
            return max(tokens - math.prod(embedded), 0)
        return known[-1] if known else 0

    def _read_tokens(self, tokens: int | None) -> tuple[set[int], bool]:
        """(tokens that are picked on the way from the last block to the output, whether there is a pool)."""
        after: list[NodeProto] = []

        def through(node: NodeProto) -> bool:
            after.append(node)
            return node.name not in self.inside

        self.walk.sources(self.graph.outputs[0], through)
        after = [node for node in after if node.name not in self.inside]
        picked = {self._picked(node, axis) for node in after for axis in self._axes_of(node, tokens)}
        return {i for i in picked if i is not None}, any(map(self._pools, after))

    def _pools(self, node: NodeProto) -> bool:
        """It takes a mean over tokens, not over classifiers."""
        before = (
            self.walk.back(node.input[0], self.walk.is_movement) if node.op_type in POOLING_TYPES else None
        )
        return node.op_type in POOLING_TYPES and (before is None or before.name not in self.heads)

    def _axes_of(self, node: NodeProto, tokens: int | None) -> list[int]:
        """The axis of the tokens in what it reads: [images, tokens, ...] or [tokens, images, ...]."""
        shape = self.shapes.get(node.input[0], ())
        return [axis for axis in (1, 0) if shape[axis : axis + 1] == (tokens,)][:1]

    def _picked(self, node: NodeProto, axis: int) -> int | None:
        """The one token that a Gather or Slice along the tokens' axis takes."""
        values = [self.graph.constants.get(name) for name in node.input[1:]]
        known = [value.reshape(-1).tolist() for value in values if value is not None]
        if len(known) < len(values) or not known:
            return None
        if node.op_type == "Gather" and attribute(node, "axis", 0) == axis and len(known[0]) == 1:
            return int(known[0][0])
        sliced = node.op_type == "Slice" and len(known) >= 3 and known[2] == [axis]
        return int(known[0][0]) if sliced and known[1][0] - known[0][0] == 1 else None


def _grid(sizes: tuple[int | str, ...]) -> PatchGrid | None:
    rows, columns = sizes
    return (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None


def _class_token_note(prefix: int, picked: set[int]) -> str:
    if prefix == 1:
        return "the class token is the one token before the patches, which the output reads"
    others = sorted(picked - {0})
    also = f"; it reads token {', '.join(map(str, others))} too (counted from 0)" if others else ""
    return (
        f"the class token is the first of {prefix} tokens before the patches, which the output reads{also}; "
        "the others are left out, as they are no patches"
    )
