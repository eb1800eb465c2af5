"""Images made from a model in the place of calibration images: what all methods that make some share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptq2themoon.graph.editing.onnx_graph import fixed_batch
from ptq2themoon.quantize.image_loss import Attended, attended
from ptq2themoon.quantize.synthesis import pixel_range
from ptq2themoon.vocabulary.errors import UserError

if TYPE_CHECKING:
    from ptq2themoon.quantize.model import QuantizedModel
    from ptq2themoon.quantize.tools import Tools

AT_ONCE = 32  # images of a calibration batch, as the workflow has them


def refuse_read(name: str, tools: Tools) -> None:
    """Raise `UserError` where a method comes before the one of this name: it may have read real images."""
    if tools.prepared:
        raise UserError(
            f"{name}: {tools.prepared[0]} comes before it and may have read the drawn images; "
            f"name {name} first"
        )


def attended_blocks(name: str, model: QuantizedModel, instead: str) -> list[Attended]:
    """The blocks whose patches attend to each other; `UserError`, ending with `instead`, where none is."""
    found = attended(model.rewritten, model.operators)
    if not found:
        raise UserError(
            f"{name}: no block of the model has attention between patches, whose similarity would "
            f"guide the images; {instead}"
        )
    return found


def input_size(name: str, model: QuantizedModel) -> tuple[int, int, int]:
    """Channels, height and width of what the model reads; `UserError` where that is no image."""
    sizes = [dim.dim_value for dim in model.reference.graph.input[0].type.tensor_type.shape.dim[1:]]
    if len(sizes) != 3 or 0 in sizes:
        raise UserError(f"{name}: the model's input has sizes {sizes}, not those of an image; leave it out")
    channels, height, width = sizes
    return channels, height, width


def refuse_rest(name: str, model: QuantizedModel, **counts: int) -> None:
    """Raise `UserError` where a graph takes a fixed number of images, and a setting is no multiple of it."""
    fixed = fixed_batch(model.reference)
    for setting, count in counts.items():
        if fixed and count % fixed:
            raise UserError(
                f"{name}: the model takes {fixed} images at once, and {setting}: {count} is no multiple of "
                f"that; say {setting}: {-(-count // fixed) * fixed}"
            )


def in_batches(model: QuantizedModel, images: Tensor) -> list[Tensor]:
    """As the workflow has them, or as many at once as the graph takes."""
    return list(images.split(fixed_batch(model.reference) or AT_ONCE))


def fix_input_range(name: str, model: QuantizedModel, tools: Tools) -> None:
    """Quantize what reads the image for all that an image can hold."""
    if tools.info is None:
        raise UserError(f"{name}: input_range pixels needs the model's preprocessing, which is not known")
    image = model.reference.graph.input[0].name
    nodes = {node.name: node for node in model.edited.graph.node}
    extremes = torch.cat(pixel_range(tools.info.preprocessing)).numpy()
    for item in tools.plan(model):
        for tensor in item.tensors:
            reads = tensor.operand == "input" and nodes[item.operator.name].input[tensor.position] == image
            if reads:
                model.fixed[item.slot(tensor)] = tools.fitted(item.slot(tensor), tensor, extremes)
