"""Which role and block each operator has been given, while they are being found."""

from __future__ import annotations

from onnx import NodeProto

from ptq2themoon.graph.editing.onnx_graph import Graph
from ptq2themoon.graph.meaning.walk import Walk
from ptq2themoon.vocabulary.operators import Role


class Places:
    """Role and block by the name of the operator; the first one that is given stays."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.walk = graph, Walk(graph)
        self.known: dict[str, tuple[Role, int | None]] = {}

    def __contains__(self, node: NodeProto) -> bool:
        return node.name in self.known

    def put(self, node: NodeProto | None, role: Role, block: int | None = None) -> None:
        """Give an operator its place, unless it has one."""
        if node is not None:
            self.known.setdefault(node.name, (role, block))

    def at(self, role: Role, block: int | None) -> NodeProto | None:
        """The first operator of a place."""
        return next((n for n in self.graph.nodes if self.known.get(n.name) == (role, block)), None)

    def block(self, name: str) -> int | None:
        """Of an operator."""
        return self.known[name][1] if name in self.known else None
