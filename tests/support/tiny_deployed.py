"""Tiny quantized models, deployed: their files, their sessions, and what runs in them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from families import FAMILIES, image_shape
from onnx import numpy_helper
from tiny_models import random_images, to_onnx
from tiny_quantized import Tiny
from torch import Tensor, nn

from ptq2themoon.deploy.deploy_report import Deployed
from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.graph.editing.onnx_run import kernel_counts, session
from ptq2themoon.graph.forms.fuse import fuse
from ptq2themoon.graph.forms.normalise import normalise
from ptq2themoon.graph.meaning.nodes import read_nodes
from ptq2themoon.graph.meaning.roles import find_roles, rename_operators
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.quantize.tensors import QuantizedOperator
from ptq2themoon.vocabulary.modes import Mode, Profile
from ptq2themoon.vocabulary.recipes import Recipe


@dataclass
class Quantized:
    """A fused model, calibrated, and images for it."""

    tiny: Tiny
    images: Tensor
    simulated: SimulatedModel
    quantized: list[QuantizedOperator]

    @classmethod
    def make(
        cls,
        folder: Path,
        family: str,
        recipe: Recipe | str = "vanilla",
        bits: tuple[int, int] = (8, 8),
        dynamic_batch: bool = True,
    ) -> Quantized:
        made = FAMILIES[family](), image_shape(family)
        return cls.of_module(folder, *made, recipe, bits, dynamic_batch)

    @classmethod
    def of_module(
        cls,
        folder: Path,
        module: nn.Module,
        shape: tuple[int, int, int],
        recipe: Recipe | str = "vanilla",
        bits: tuple[int, int] = (8, 8),
        dynamic_batch: bool = True,
    ) -> Quantized:
        batch = 1 if dynamic_batch else 3
        fused, _ = fuse(normalise(to_onnx(module, (batch, *shape), dynamic_batch)))
        operators, _ = rename_operators(fused, find_roles(fused))
        path = folder / "fused.onnx"
        onnx.save(fused, path)
        tiny = Tiny(path, operators, read_nodes(onnx.load(path)))
        return cls.of(tiny, recipe, bits, torch.from_numpy(random_images(12, *shape)))

    @classmethod
    def of(cls, tiny: Tiny, recipe: Recipe | str, bits: tuple[int, int], images: Tensor) -> Quantized:
        model, planned = tiny.calibrated(recipe, bits, batches=list(images.split(3)))
        return cls(tiny, images[:3], model, planned)

    @cached_property
    def model(self) -> onnx.ModelProto:
        return read_graph(self.tiny.path)

    def deployed(self, mode: Mode, profile: Profile = "onnxruntime") -> Deployed:
        return deploy(self.model, self.quantized, mode, profile)

    def run(self, made: Deployed | onnx.ModelProto, *, optimise: bool = True) -> np.ndarray:
        model = made.model if isinstance(made, Deployed) else made
        running = session(model, quantized=True, optimise=optimise)
        return running.run(None, {running.get_inputs()[0].name: self.images.numpy()})[0]

    def floating(self) -> np.ndarray:
        with self.simulated.only(()):
            return self.simulated(self.images).numpy()


def kernels(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime makes of a model."""
    session(model, quantized=True, optimised=folder / "optimised.onnx")
    return kernel_counts(folder / "optimised.onnx")


def sqnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """In dB; higher is better."""
    noise = np.square(found - wanted).sum()
    return float("inf") if noise == 0 else float(10 * np.log10(np.square(wanted).sum() / noise))


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def of_type(model: onnx.ModelProto, *types: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in types]
