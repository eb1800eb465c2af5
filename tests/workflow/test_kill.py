"""A stage that is killed leaves nothing that could be taken for its result, and runs again as if new."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_stages import ROOT, STAGES, between, command, files, outputs, process, run_stage, write_weights

from ptq2themoon.safety.sidecars import sha256, sidecar_path

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_training_killed_in_its_midst_goes_on_to_the_bytes_of_an_uninterrupted_one(
    chain: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(chain, tmp_path / "run", symlinks=True)
    recipe = "extends: papers\nmethods: [{name: qdrop, iterations: 60, batch: 8}]\n"
    (folder / "recipes" / "trained.yaml").write_text(recipe)
    names = {"whole": "out/whole/qparams", "killed": "out/killed/qparams"}
    options = {
        name: STAGES["calibrate"]
        | {"recipe": "recipes/trained.yaml", "out": f"{stem}.json", "out-arrays": f"{stem}.safetensors"}
        for name, stem in names.items()
    }
    ended = run_stage(folder, "calibrate", **options["whole"])
    assert ended.status == 0, ended.err
    state = folder / "out/killed/training"
    line = [sys.executable, *command("calibrate", **options["killed"])]
    running = subprocess.Popen(line, cwd=folder, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not (state / "unit-2.safetensors").is_file():
        time.sleep(0.01)
    running.kill()
    _, said = running.communicate()
    assert running.returncode == -signal.SIGKILL, said
    assert sorted(path.name for path in (folder / "out/killed").iterdir()) == ["training"]
    again = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "train before the blocks" not in again.stderr  # what was done is not done again
    assert not state.exists()
    for suffix in (".json", ".safetensors"):
        whole, killed = (folder / f"{stem}{suffix}" for stem in names.values())
        assert whole.read_bytes() == killed.read_bytes()
