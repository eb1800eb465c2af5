"""Read many inputs broken by chance (`make fuzz`); what came of them goes to results/benchmarks/fuzz.csv.

tests/support/broken_inputs.py makes the inputs and reads them; tests/test_fuzz.py reads a few of the same.
Each kind has a process of its own, so that one which crashes or never comes back is counted, not waited for.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hypothesis
import tyro
from broken_inputs import KINDS

from ptq2themoon.progress import progress
from ptq2themoon.stage import Stage, run
from ptq2themoon.tables.csv_rows import write_csv
from ptq2themoon.vocabulary.errors import UserError

COLUMNS = (
    "kind", "inputs", "read", "refused", "other_errors", "crashes", "over_10_s", "slowest_s",
    "memory_first_mb", "memory_last_mb", "cpu_s",
)  # fmt: skip
CHUNK = 500  # inputs that hypothesis makes with one seed
HANG = 10  # seconds of the processor for one input
LOST = 600  # seconds for a chunk, after which its process is given up
SHARES = {"parameters": 0.25, "recipes": 0.45, "onnx": 0.05, "images": 0.25}


def fuzz(
    inputs: int = 100_000,
    seed: int = 0,
    keep: Path | None = None,
    out: Path = Path("results/benchmarks/fuzz.csv"),
) -> None:
    """Read broken inputs of every kind.

    Args:
        inputs: how many, of all kinds together.
        seed: of the first chunk; each later one has the next.
        keep: a folder for what ended in another way than it may.
        out: CSV, one row per kind.
    """
    parameters = {"inputs": inputs, "chunk": CHUNK, "shares": SHARES}
    with Stage("fuzz", inputs=[], outputs=[out], parameters=parameters, seed=seed) as stage:
        rows = []
        for kind, share in SHARES.items():
            chunks = -(-round(inputs * share) // CHUNK)
            found = list(progress(chunks_of(kind, range(seed, seed + chunks), keep), chunks, kind))
            rows.append({"kind": kind, **summed(found)})
        write_csv(stage.temporary(out), COLUMNS, rows)


def summed(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a kind. Memory: of the process when a fifth was read, and at the end."""
    total: Counter[str] = Counter()
    for chunk in chunks:
        total.update({key: value for key, value in chunk.items() if key not in ("slowest_s", "memory_mb")})
    memory = [chunk["memory_mb"] for chunk in chunks if chunk["memory_mb"]]
    return {
        **total,
        "slowest_s": round(max(chunk["slowest_s"] for chunk in chunks), 2),
        "memory_first_mb": memory[len(memory) // 5],
        "memory_last_mb": memory[-1],
        "cpu_s": round(total["cpu_s"]),
    }


def chunks_of(kind: str, seeds: range, keep: Path | None) -> Iterator[dict[str, Any]]:
    """The figures of each chunk; a process that is lost is followed by another, from the next chunk on."""
    context, left = get_context("fork"), list(seeds)
    while left:
        here, there = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(kind, left, keep, there))
        worker.start()
        there.close()
        while left:
            try:
                found = here.recv() if here.poll(LOST) else None
            except EOFError:
                found = None
            left.pop(0)
            yield found or {**dict.fromkeys(COLUMNS[2:], 0), "inputs": CHUNK, "crashes": 1, "memory_mb": 0}
            if found is None:
                worker.kill()
                break
        worker.join()


def _work(kind: str, seeds: list[int], keep: Path | None, out: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30,) * 2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # warnings of images left out
    signal.signal(signal.SIGPROF, _over)
    for seed in seeds:
        out.send(_chunk(kind, seed, keep))


def _chunk(kind: str, seed: int, keep: Path | None) -> dict[str, Any]:
    """The figures of the inputs that hypothesis makes with one seed."""
    found: Counter[str] = Counter(dict.fromkeys(COLUMNS[2:], 0))
    slowest, begun = [0.0], time.process_time()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=CHUNK, deadline=None, database=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(KINDS[kind].inputs)
    def read(content: Any) -> None:
        start = time.process_time()
        found.update(["inputs", _ended(kind, content, keep)])
        slowest.append(time.process_time() - start)

    read()
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") // 2**20
    return {**found, "slowest_s": max(slowest), "memory_mb": memory, "cpu_s": time.process_time() - begun}


class _TooLong(BaseException):
    """Ten seconds of the processor are over."""


def _over(*_: object) -> None:
    raise _TooLong


def _ended(kind: str, content: Any, keep: Path | None) -> str:
    """How the reader of a kind ended, as the column that counts it."""
    signal.setitimer(signal.ITIMER_PROF, HANG)
    with tempfile.TemporaryDirectory() as folder:
        try:
            KINDS[kind].read(content, Path(folder))
            return "read"
        except UserError:
            return "refused"
        except BaseException as error:
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{kind}-{len(list(keep.iterdir()))}.txt").write_text(f"{error!r}\n{content!r}\n")
            return "over_10_s" if isinstance(error, _TooLong) else "other_errors"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    run(lambda: tyro.cli(fuzz))
