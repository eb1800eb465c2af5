"""The constants of a graph: an array of each, and of a weight only while somebody needs it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, MutableMapping
from typing import Self
from weakref import WeakValueDictionary

import numpy as np
from onnx import TensorProto, numpy_helper

from ptq2themoon.graph.editing.one_message import is_large


class Constants(MutableMapping[str, np.ndarray]):
    """Arrays by name; that of a weight is read from the model when it is used: all are as large as the model.

    Args:
        tensors: of a model, which nobody changes.
    """

    def __init__(self, tensors: Iterable[TensorProto]) -> None:
        self._held: dict[str, np.ndarray | TensorProto] = {
            tensor.name: tensor if is_large(tensor) else numpy_helper.to_array(tensor) for tensor in tensors
        }
        self._in_use: WeakValueDictionary[str, np.ndarray] = WeakValueDictionary()

    def __getitem__(self, name: str) -> np.ndarray:
        held = self._held[name]
        if not isinstance(held, TensorProto):
            return held
        value = self._in_use.get(name)
        if value is None:
            value = self._in_use[name] = numpy_helper.to_array(held)
        return value

    def __setitem__(self, name: str, value: np.ndarray) -> None:
        self._held[name] = value

    def __delitem__(self, name: str) -> None:
        del self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __ior__(self, others: Mapping[str, np.ndarray]) -> Self:
        self._held |= others
        return self

    def keep(self, names: Container[str]) -> None:
        """Drop all others."""
        self._held = {name: held for name, held in self._held.items() if name in names}

    def tensors(self) -> Iterator[TensorProto]:
        """Each as a tensor of ONNX of its name."""
        for name, held in self._held.items():
            if isinstance(held, TensorProto) and _is_plain(held):
                yield held
            else:
                yield numpy_helper.from_array(self[name], name)


def _is_plain(tensor: TensorProto) -> bool:
    """Whether it is what ONNX writes of an array: a shape, a type, a name and bytes."""
    more = any(tensor.HasField(field) for field in ("doc_string", "data_location", "segment"))
    return tensor.HasField("raw_data") and not more and not tensor.metadata_props
