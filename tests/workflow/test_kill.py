"""A stage that is killed leaves nothing that could be taken for its result, and runs again as if new."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from tiny_stages import ROOT, STAGES, between, command, files, outputs, process, run_stage, write_weights

from ptq2themoon.stage import sha256, sidecar_path

STAGES_KILLED = ["export", "draw_calibration", "fuse", "calibrate", "evaluate"]
# What makes the results in new/ others than those in out/; the rest follows from the model.
CHANGES = {"export": {"source": "local-dir:other"}, "draw_calibration": {"seed": 4}}


@pytest.fixture(scope="module")
def template(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one model in out/, those of another one in new/."""
    folder = shutil.copytree(chain, tmp_path_factory.mktemp("kill") / "template", symlinks=True)
    write_weights(folder / "other", seed=1)
    (folder / "changes.json").write_text(json.dumps(CHANGES))
    for stage in list(STAGES)[:7]:
        ended = run_stage(folder, stage, **between(stage, "new", "new") | CHANGES.get(stage, {}))
        assert ended.status == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def killed(template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """Stages that were to replace out/ by new/, killed at every step; the signal of each."""
    folder = tmp_path_factory.mktemp("killed")
    ended = process(ROOT / "tests/workflow/killing.py", template, folder, *STAGES_KILLED, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder, json.loads(ended.stdout)


@pytest.mark.parametrize("stage", STAGES_KILLED)
def test_killed_at_every_step(template: Path, killed: tuple[Path, dict[str, list[int]]], stage: str) -> None:
    folder, ends = killed[0] / stage, killed[1][stage]
    assert ends[0] == signal.SIGXFSZ  # in the midst of a file
    assert ends[1:-1] == [signal.SIGKILL] * (len(ends) - 2)
    assert ends[-1] == 0
    # Each output renamed, the old sidecar removed, the new one opened and renamed.
    assert len(ends) - 2 >= len(outputs(stage)) + 3
    for step in range(len(ends)):
        check_killed(template, folder / str(step), stage)


def check_killed(template: Path, folder: Path, stage: str) -> None:
    """No output is half, none has the sidecar of another, and the same command makes all new."""
    old = {path: (template / path).read_bytes() for path in outputs(stage)}
    new = {path: (template / path.replace("out/", "new/")).read_bytes() for path in outputs(stage)}
    assert old != new
    for path in outputs(stage):
        assert (folder / path).read_bytes() in (old[path], new[path]), path
    assert sidecar_holds(folder, stage)
    left = set(files(folder)) - set(files(template))
    assert all(Path(path).match(".*.tmp*") for path in left)
    ended = run_stage(folder, stage, **between(stage, "new", "out") | CHANGES.get(stage, {}))
    assert ended.status == 0, ended.err
    assert {path: (folder / path).read_bytes() for path in outputs(stage)} == new
    assert sidecar_path(folder / outputs(stage)[0]).is_file()
    assert sidecar_holds(folder, stage)
    assert set(files(folder)) - set(files(template)) == left  # harmless


def sidecar_holds(folder: Path, stage: str) -> bool:
    """Whether there is none, or it tells of the very outputs that are there."""
    sidecar = sidecar_path(folder / outputs(stage)[0])
    if not sidecar.is_file():
        return True
    recorded = json.loads(sidecar.read_text())["outputs"]
    return recorded == {path: sha256(folder / path) for path in outputs(stage)}


def test_what_a_killed_run_leaves_is_no_part_of_the_repository() -> None:
    names = [f"results/demo/.{name}.4711.tmp{end}" for name, end in (("metrics", ".json"), ("top1", ".svg"))]
    names.append("results/demo/.metrics.sidecar.json.4711.tmp")
    words = ["git", "check-ignore", "--no-index", *names]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode == 128:
        pytest.skip("no git repository")
    assert ended.stdout.split() == names


def test_a_full_disk_leaves_nothing(chain: Path, tmp_path: Path) -> None:
    """The write fails, and the stage cleans up and says so."""
    folder = shutil.copytree(chain, tmp_path / "copy", symlinks=True)
    shutil.rmtree(folder / "out/q")
    before = files(folder)
    code = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
    code += "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    ended = process("-c", code, *command("calibrate"), cwd=folder)
    assert ended.returncode not in (0, None)
    assert "File too large" in ended.stderr
    assert files(folder) == before
