"""What the shards of an evaluation hand to the stage that gathers them.

A shard runs whole batches, and hands on what is known of each image. The stage that gathers puts the batches
in order and does with them what it would do with those of its own, so every figure is the same, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptq2themoon.data.tensor_rows import RowsFile
from ptq2themoon.evaluate.accuracy import Compared
from ptq2themoon.evaluate.evaluation_images import Evaluated, shard_places
from ptq2themoon.evaluate.outputs import Reference, open_rows, output_file, simulation_of
from ptq2themoon.safety.sidecars import sha256
from ptq2themoon.vocabulary.errors import UserError

COMPARED = ("output", "cosine", "kl")  # of a simulation's shard


def part_file(
    path: Path, images: Evaluated, shard: str, device: str, made_from: Mapping[str, str]
) -> RowsFile:
    """The file of a shard, to be filled batch by batch.

    Args:
        images: of the shard.
        device: on which it ran.
        made_from: sums of what else decides its content.
    """
    size = images.batches.batch_size
    return output_file(path, len(images.indices), _part_of(shard, size, device, made_from))


def device_of(parts: Sequence[Path]) -> str:
    """Where shards ran, as the first of them says."""
    try:
        with safe_open(parts[0], "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{parts[0]}: holds no shard ({error}); run its stage again") from None
    return metadata.get("device", "cpu")


def gathered(
    parts: Sequence[Path],
    names: Sequence[str],
    images: Evaluated,
    device: str,
    made_from: Mapping[str, str],
    stage: str,
) -> Iterator[dict[str, Tensor]]:
    """Every batch of all shards in order, its tensors by name.

    Args:
        parts: a file of each shard, in their order.
        images: of all shards.
        device: on which each must have run.
        stage: that wrote them.

    Raises:
        UserError: a part of another model, of other images, of another shard or from another device.
    """
    size = images.batches.batch_size
    for number, path in enumerate(parts, start=1):
        shard = f"{number}-of-{len(parts)}"
        if not shard_places(len(images.indices), size, shard):
            continue  # more shards than batches
        tensors = open_rows(path, names, _part_of(shard, size, device, made_from), stage)
        for batch in zip(*(rows.split(size) for rows in tensors), strict=True):
            yield dict(zip(names, batch, strict=True))


def _part_of(shard: str, batch_size: int, device: str, made_from: Mapping[str, str]) -> dict[str, str]:
    return {**made_from, "shard": shard, "batch_size": str(batch_size), "device": device}


def comparison_of(qparams: Sequence[Path], manifest: Path, reference: Path) -> dict[str, str]:
    """What a shard of a simulation is made from."""
    return {**simulation_of(qparams, manifest), "reference": sha256(reference)}


def gathered_comparison(
    parts: Sequence[Path], images: Evaluated, reference: Reference, device: str, made_from: Mapping[str, str]
) -> Iterator[Compared]:
    """As `accuracy.compared` gives it, from what shards found."""
    batches = gathered(parts, COMPARED, images, device, made_from, "evaluate_part")
    known = zip(batches, reference.output.split(images.batches.batch_size), images.labels(), strict=True)
    for found, expected, labels in known:
        yield Compared(reference=expected, labels=labels, **found)
