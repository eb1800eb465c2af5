"""A fused model as one object: its graph, fusion.json and model.json, read and checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from ptq2themoon.graph.editing.onnx_graph import fixed_batch
from ptq2themoon.graph.meaning.fusion_record import FusionReport
from ptq2themoon.graph.meaning.nodes import Node, read_nodes
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.safety.sidecars import sha256
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.layout import FUSED, fused_files
from ptq2themoon.vocabulary.model_info import ModelInfo
from ptq2themoon.vocabulary.operators import Operator
from ptq2themoon.vocabulary.records import parsed, read

GRAPH, REPORT, INFO = FUSED


@dataclass(frozen=True, eq=False)
class FusedModel:
    """The fused model of a folder; nobody may change `graph`.

    Attributes:
        path: of fused.onnx.
        graph: parsed from it.
    """

    path: Path
    graph: onnx.ModelProto
    report: FusionReport
    info: ModelInfo

    @classmethod
    def open(cls, folder: Path, qparams: Sequence[Path] | None = None) -> FusedModel:
        """Read `fused_files(folder)`.

        Args:
            qparams: quantization parameters (qparams.json first) that must have been made for this graph.

        Raises:
            UserError: a file of another form, or files of different models.
        """
        path, report, info = fused_files(folder)
        found = cls(path, read_graph(path), read(report, FusionReport), read(info, ModelInfo))
        operators = [(operator.name, operator.type) for operator in found.operators]
        if operators != [(node.name, node.op_type) for node in found.graph.graph.node]:
            raise UserError(f"{report}: lists other operators than {path} has; run the fuse stage again")
        size = [dim.dim_value for dim in found.graph.graph.input[0].type.tensor_type.shape.dim[1:]]
        expected = found.info.preprocessing.input_size
        if size != expected:
            raise UserError(
                f"{info}: preprocessing.input_size is {expected}, but {path} takes {size}; "
                "it belongs to another model"
            )
        if qparams:
            found.check_parameters(qparams)
        return found

    @cached_property
    def operators(self) -> list[Operator]:
        """In graph order, with role and block."""
        return self.report.placed

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """What a quantizer must know of each operator, by name."""
        return read_nodes(self.graph)

    @cached_property
    def sha256(self) -> str:
        """Of fused.onnx: what files made for this graph record."""
        return sha256(self.path)

    def at_once(self, images: int) -> int:
        """How many images run together: so many, unless the graph takes another number."""
        return fixed_batch(self.graph) or images

    def check_parameters(self, qparams: Sequence[Path]) -> None:
        """Refuse quantization parameters (qparams.json first) that were made for another graph."""
        path = qparams[0]
        try:
            made_for = parsed(path.read_text(encoding="utf-8"))["graph_sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise UserError(
                f"{path}: not quantization parameters of ptq2themoon ({reason}); calibrate again"
            ) from None
        if made_for != self.sha256:
            raise UserError(
                f"{path}: the parameters belong to another graph than {self.path}; calibrate again"
            )
