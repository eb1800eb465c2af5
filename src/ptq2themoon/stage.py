"""What every stage shares: atomic outputs, the sidecar beside them, errors as one line.

A stage writes each output to a temporary name in the output's own folder; all are renamed when
the stage ends well and all are on the disk, the sidecar last. A stage that fails or is killed leaves
nothing under the final names. Weights in a file beside an ONNX file are an output too.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import tyro

from ptq2themoon import __version__
from ptq2themoon.safety.code_behind import code_sum
from ptq2themoon.safety.durable import publish, settle, trouble
from ptq2themoon.safety.one_run import is_abandoned
from ptq2themoon.safety.sidecars import sha256, sidecar_path
from ptq2themoon.vocabulary.errors import UserError, lines_of
from ptq2themoon.vocabulary.job import Job
from ptq2themoon.vocabulary.onnx_data import data_beside
from ptq2themoon.vocabulary.records import write_json

RECORDED_PACKAGES = ("torch", "timm", "onnx", "onnxruntime", "ppq", "numpy", "pandas", "matplotlib")


def versions() -> dict[str, str]:
    """Versions of ptq2themoon, Python and the packages that decide results."""
    found = {"ptq2themoon": __version__, "python": sys.version.split()[0]}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


class Stage:
    """One run of a stage.

    with Stage("fuse", inputs=[model], outputs=[graph, report], parameters={...}) as stage:
        write_model(fused, stage.temporary(graph), graph.name)
        write_json(stage.temporary(report), facts)

    Args:
        name: the stage, as the sidecar names it.
        inputs: files read; a missing one is a `UserError`.
        outputs: files that the stage writes, the main one first: the sidecar lies beside it.
        parameters: all that determines the result besides the inputs (JSON types).
        methods: that the stage is told to call, by their names: their code counts too.
        seed: the seed in force, if the stage draws anything.
        device: the device that computed, if one did.
    """

    def __init__(
        self,
        name: str,
        *,
        inputs: Sequence[Path],
        outputs: Sequence[Path],
        parameters: Mapping[str, Any],
        seed: int | None = None,
        device: str | None = None,
        methods: Sequence[str] = (),
    ) -> None:
        self.name, self.parameters, self.seed, self.device = name, dict(parameters), seed, device
        self.code = code_sum(name, tuple(methods))
        self.inputs, self.outputs = list(inputs), list(outputs)
        self._files: dict[Path, Path] = {}  # that get their names now, by the temporary ones

    @classmethod
    def of(cls, job: Job, *, device: str | None = None, extra: Mapping[str, Any] | None = None) -> Stage:
        """The run of a declared job.

        Args:
            device: that computes, where the job leaves it open.
            extra: parameters that only show while it runs, such as the listing of a folder.
        """
        return cls(
            job.stage,
            inputs=job.inputs(),
            outputs=job.outputs(),
            parameters=job.parameters() | dict(extra or {}),
            seed=job.drawn_with(),
            device=device or job.runs_on,
            methods=job.methods_called(),
        )

    @property
    def key(self) -> str:
        """Sum of what decides the result, but for the code: inputs, parameters, seed, device, versions."""
        inputs = {path.as_posix(): digest for path, (digest, _) in self._read.items()}
        facts = [self.name, inputs, self.parameters, self.seed, self.device, versions()]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def temporary(self, output: Path) -> Path:
        """Where to write `output` until the stage ends well; keeps the suffix."""
        if output not in self.outputs:
            raise ValueError(f"{output} is not an output of stage {self.name}")
        return output.with_name(f".{output.stem}.{os.getpid()}.tmp{output.suffix}")

    def __enter__(self) -> Stage:
        for path in self.inputs:
            if not path.is_file():
                raise UserError(f"{path}: not found; stage {self.name} needs it")
        for folder in {path.parent for path in self.outputs}:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise self._unwritten(folder, error) from error
        self._start = time.monotonic()
        self._read = {path: (sha256(path), _identity(path)) for path in self.inputs}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            where = self._being_written(error)
            self._discard()
            if where and trouble(error):
                raise self._unwritten(where, error) from error
            return
        if flaw := self._flaw():
            self._discard()
            raise UserError(f"{flaw}; nothing is written, run it again")
        try:
            self._publish()
        except OSError as failed:
            where = self._being_written(failed) or self.outputs[0]
            self._withdraw()
            self._discard()
            raise self._unwritten(where, failed) from failed

    def _flaw(self) -> str:
        """Why what was made must not count."""
        if is_abandoned():
            return f"stage {self.name}: the run that started it is gone"
        for path, (digest, identity) in self._read.items():
            now = _identity(path)
            if now != identity and not (now and sha256(path) == digest):
                return f"{path}: changed while stage {self.name} ran"
        return ""

    def _publish(self) -> None:
        """Give all outputs their names, then the sidecar; what can fail for want of room comes before."""
        sidecar = sidecar_path(self.outputs[0])
        self._files = self._made()
        for temporary in self._files:
            _as_others_are_made(temporary)
        write_json(self._sidecar, self._record())
        settle(self._sidecar)
        # An old sidecar must never stand beside a new output.
        sidecar.unlink(missing_ok=True)
        publish(self._files)
        for beside in map(data_beside, self.outputs):
            if beside.is_file() and beside not in self._files.values():
                beside.unlink()  # of a larger model that was there before
        publish({self._sidecar: sidecar})

    def _made(self) -> dict[Path, Path]:
        """The final name of each file of the outputs, by the temporary one: data before what needs them."""
        found: dict[Path, Path] = {}
        for output in self.outputs:
            data, temporary = _with_data(self.temporary(output))
            found |= {data: data_beside(output)} if data.is_file() else {}
            found[temporary] = output
        return found

    @property
    def _sidecar(self) -> Path:
        """The temporary one."""
        path = sidecar_path(self.outputs[0])
        return path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def _record(self) -> dict[str, Any]:
        inputs = {path: digest for path, (digest, _) in self._read.items()}
        sizes = {path: identity[1] for path, (_, identity) in self._read.items() if identity}
        sizes |= {path: temporary.stat().st_size for temporary, path in self._files.items()}
        return {
            "stage": self.name,
            "parameters": self.parameters,
            "inputs": {path.as_posix(): digest for path, digest in inputs.items()},
            "outputs": {path.as_posix(): sha256(temporary) for temporary, path in self._files.items()},
            "bytes": {path.as_posix(): size for path, size in sizes.items()},
            "seed": self.seed,
            "device": self.device,
            "code": self.code,
            "versions": versions(),
            "wall_time_s": round(time.monotonic() - self._start, 3),
        }

    def _withdraw(self) -> None:
        """Take outputs away that have their names already, where the others have not."""
        if not sidecar_path(self.outputs[0]).is_file():
            for temporary, path in self._files.items():
                if not temporary.is_file():
                    path.unlink(missing_ok=True)

    def _discard(self) -> None:
        begun = [file for path in self.outputs for file in _with_data(self.temporary(path))]
        for path in (*begun, self._sidecar):
            path.unlink(missing_ok=True)

    def _being_written(self, error: BaseException) -> Path | None:
        """The output that a failed write was to make: the one that it names, or the last that was begun."""
        files = {file: path for path in self.outputs for file in _with_data(self.temporary(path))}
        named = [file for file in files if str(file) == getattr(error, "filename", None)]
        begun = [file for file in files if file.is_file()]
        last = max(named or begun, key=_changed, default=None)
        return None if last is None else files[last]

    def _unwritten(self, path: Path, error: BaseException) -> UserError:
        what, remedy = trouble(error) or (str(error), "see that it can be written")
        return UserError(
            f"{path}: not written: {what}; stage {self.name} leaves nothing; {remedy}, then run it again"
        )


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written to or replaced."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _with_data(path: Path) -> tuple[Path, Path]:
    """The data that may belong to a file, and the file."""
    return data_beside(path), path


def _changed(path: Path) -> int:
    """Time of the last write, in ns; 0 where there is no file."""
    return path.stat().st_mtime_ns if path.is_file() else 0


def _as_others_are_made(path: Path) -> None:
    """Permissions as `open` gives them: safetensors writes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


J = TypeVar("J", bound=Job)


def run_job(main: Callable[[J], None], kind: type[J]) -> None:
    """Run a stage's `main` on the job that the command line describes; `--help` lists its options."""

    def described() -> None:
        _refuse_repeated(sys.argv[1:])
        main(tyro.cli(kind))

    run(described)


def _refuse_repeated(words: Sequence[str]) -> None:
    """Of an option given twice the last would count, in silence."""
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    for option in options:
        if options.count(option) > 1:
            raise UserError(f"{option}: given twice; give all its values after one {option}")


def run(main: Callable[[], None]) -> None:
    """Run `main`; what the user can mend becomes a line on stderr for each thing, and status 2."""
    try:
        main()
    except (UserError, OSError) as error:
        print(*lines_of(error), sep="\n", file=sys.stderr)
        raise SystemExit(2) from None
