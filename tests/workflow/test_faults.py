"""What breaks: the run goes on, or the next one ends with a clean run's results, or one line says why not.

docs/faults.md has a row for each of these tests.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import finished_run
import pytest
from clones import ROOT, environment, run
from finished_run import copy, differing, fresh, results, verify
from tiny_run import snakemake

pytestmark = [pytest.mark.slow, pytest.mark.faults]

KEY = "w8a8-n6-s0"
LIGHT, HEAVY = f"results/tiny/papers/{KEY}", f"results/models/tiny/papers/{KEY}"
LATE = 4e9  # in the year 2096
ODD = 'it\'s "here", größer than 100% & $x'


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run.finished(tmp_path_factory.getbasetemp())


@pytest.fixture
def broken(finished: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return copy(finished, tmp_path / "copy")


def errors(said: str) -> list[str]:
    """Lines of ours; none may be a traceback."""
    assert "Traceback" not in said, said
    return [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]


def refused(folder: Path, *options: str, by: Sequence[str] = ()) -> str:
    """The one line that a run ends with, before any job; no result changes."""
    before = results(folder)
    said = run(folder, *by, "snakemake", "--cores", "2", *options, status=1)
    (line,) = errors(said)
    assert "rule " not in said
    assert results(folder) == before
    return line


def is_done(folder: Path) -> None:
    """Snakemake has nothing to do, and the verifier agrees."""
    assert "Nothing to be done" in snakemake(folder, "--dry-run")
    assert verify(folder).endswith(" results verified\n")


# Kills ------------------------------------------------------------------------------------------------


def test_a_worker_killed_in_every_stage_is_started_again(finished: Path, tmp_path: Path) -> None:
    """With `--retries`; each stage once, in the midst of its work."""
    folder, killed = fresh(tmp_path / "clone"), tmp_path / "killed"
    killed.mkdir()
    path = os.pathsep.join([str(folder / "src"), str(ROOT / "tests/support/kill_once")])
    env = environment(folder, PYTHONPATH=path, KILL_ONCE=str(killed))
    run(folder, "snakemake", "--cores", "2", "--retries", "1", env=env)
    stages = {Path(line.split()[0]).stem for line in scripts_of(folder)}
    assert {path.name for path in killed.iterdir()} == stages
    assert {"export", "calibrate", "deploy", "summarize"} <= stages
    assert differing(finished, folder) == []
    is_done(folder)


def scripts_of(folder: Path) -> set[str]:
    """The scripts that a whole run calls."""
    said = snakemake(folder, "--dry-run", "--forceall", "--printshellcmds")
    return set(re.findall(r"python (workflow/scripts/\S+)", said))


def test_snakemake_killed_in_its_midst_goes_on_without_a_word_from_the_user(
    finished: Path, tmp_path: Path
) -> None:
    folder = fresh(tmp_path / "clone")
    env = environment(folder)
    running = subprocess.Popen(
        ["snakemake", "--cores", "2"], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 300
    while not (folder / HEAVY / "qparams.json").is_file():
        assert running.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)  # its workers live on for a moment, as after a real one
    running.communicate()
    assert [*(folder / ".snakemake/locks").iterdir()]
    said = snakemake(folder)
    assert "The last run here was killed; this one goes on with what it made." in said
    assert "rule export:" not in said
    assert differing(finished, folder) == []
    is_done(folder)


def lock(folder: Path) -> None:
    """Snakemake's own lock of an output, as a run leaves it that was killed."""
    locks = folder / ".snakemake/locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.output.lock").write_text("results/summary.csv\n")


def test_a_lock_of_another_machine_is_one_line_with_the_way_out(broken: Path) -> None:
    (broken / ".snakemake/held_by").write_text("another-machine 12\n")
    lock(broken)
    line = refused(broken, "--forcerun", "summarize")
    assert line.startswith(
        f"{broken}: another run (process 12 on another-machine) works here or was killed; "
    )
    assert line.endswith("if none is alive: `snakemake --unlock`, then again")
    snakemake(broken, "--unlock")
    assert "Nothing to be done" in snakemake(broken)


@pytest.mark.parametrize("locks", [False, True])
def test_a_second_run_in_one_folder_says_so(broken: Path, locks: bool) -> None:
    if locks:  # the first has got as far as Snakemake's own
        lock(broken)
    with open(broken / ".snakemake/held_by", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{socket.gethostname()} 12\n")
        file.flush()
        line = refused(broken, "--forcerun", "summarize")
    assert line == (
        f"{broken}: another run works here (process 12 on {socket.gethostname()}); "
        "wait for its end, or give another --directory"
    )


# Files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_files_cut_with_their_time_kept_are_made_again(finished: Path, broken: Path, turn: int) -> None:
    """Every file of the results, sidecars too: one third each is empty, half, and one byte short."""
    for number, path in enumerate(sorted((broken / "results").rglob("*"))):
        if path.is_file():
            before, size = path.stat(), path.stat().st_size
            os.truncate(path, (0, size // 2, size - 1)[(number + turn) % 3])
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    said = snakemake(broken)
    assert "0 bytes, " in said
    assert "sidecar.json: not readable; what was made with it, and is needed, is made again" in said
    assert differing(finished, broken) == []
    is_done(broken)


def test_one_cut_file_is_named_and_what_follows_from_it_is_made_again(finished: Path, broken: Path) -> None:
    path = f"{HEAVY}/qparams.safetensors"
    before = (broken / path).stat()
    os.truncate(broken / path, before.st_size // 2)
    os.utime(broken / path, ns=(before.st_atime_ns, before.st_mtime_ns))
    said = snakemake(broken)
    assert f"{path}: {before.st_size // 2} bytes, {before.st_size} when it was recorded" in said
    assert "calibrate" in said
    assert "rule fuse:" not in said
    assert differing(finished, broken) == []


def test_weights_beside_a_graph_are_watched_though_no_rule_names_them(tmp_path: Path) -> None:
    """In a clone where hardly any weights fit into a file."""
    folder = fresh(tmp_path / "clone")
    code = folder / "src/ptq2themoon/vocabulary/onnx_data.py"
    text = code.read_text()
    code.write_text(re.sub(r"^MOST_BYTES = [\d_]+", "MOST_BYTES = 10_000", text, flags=re.MULTILINE))
    snakemake(folder)
    is_done(folder)
    whole = results(folder)
    name = "results/models/tiny/fused.onnx.data"
    path = folder / name
    content = path.read_bytes()
    for what in (None, content[:-1] + bytes([content[-1] ^ 1])):
        path.unlink()
        if what is not None:
            path.write_bytes(what)
        assert f"{name}: " in verify(folder, status=2)
        said = snakemake(folder)
        assert f"{name}: " in said
        assert "tiny: fuse the graph" in said
        assert "tiny: export to ONNX" not in said
        assert results(folder) == whole
        is_done(folder)


@pytest.mark.parametrize(
    "name", ["weights/model.safetensors", "weights/config.json", "params.yaml", "recipes/papers.yaml"]
)
@pytest.mark.parametrize("left", [0, 0.5])
def test_cut_inputs_are_named_by_what_reads_them(broken: Path, name: str, left: float) -> None:
    path = broken / name
    before = path.stat()
    os.truncate(path, int(before.st_size * left))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    said = run(broken, "snakemake", "--cores", "2", status=1)
    assert "Traceback" not in said
    assert any(name in line or "weights" in line for line in errors(said))


# Disks and folders ------------------------------------------------------------------------------------


def has_mounts() -> bool:
    """Whether this process may mount a disk of its own."""
    words = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    return (
        bool(shutil.which("unshare"))
        and subprocess.run(words, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not has_mounts(), reason="may mount no disk")
def test_a_full_disk_is_named_and_leaves_no_half_file(finished: Path, tmp_path: Path) -> None:
    """results/models lies on a disk of a size that takes the graphs, and not all that is made of them."""
    folder = fresh(tmp_path / "clone")
    heavy, kept = folder / "results/models", tmp_path / "kept"
    heavy.mkdir(parents=True)
    mount = f"mount -t tmpfs -o size=280k tmpfs '{heavy}'"
    words = f"{mount} && snakemake --cores 2; s=$?; cp -a '{heavy}' '{kept}'; exit $s"
    said = run(folder, "unshare", "-m", "sh", "-c", words, status=1)
    full = [line for line in errors(said) if "No space left on device" in line]
    assert full
    for line in full:
        assert re.match(
            r"results/models/\S+: not written: No space left on device; stage \w+ leaves nothing; ", line
        )
    whole = results(finished)
    left = [path for path in kept.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert left
    for path in left:
        if not path.name.endswith(".sidecar.json"):
            assert path.read_bytes() == whole[f"models/{path.relative_to(kept).as_posix()}"], path
    snakemake(folder)
    assert differing(finished, folder) == []


def plain_user(*words: str) -> list[str]:
    """A command without what root may do beyond others."""
    if os.geteuid() != 0:
        return [*words]
    if not shutil.which("setpriv"):
        pytest.skip("root can write everywhere, and there is no setpriv")
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all", *words]


def test_all_that_is_odd_about_a_place_at_once(finished: Path, tmp_path: Path) -> None:
    """Blanks, quotes and no ASCII in its path; results is a link; no home, no cache; umask 077; LC_ALL=C."""
    folder, elsewhere = fresh(tmp_path / ODD), tmp_path / "results elsewhere"
    elsewhere.mkdir()
    (folder / "results").symlink_to(elsewhere)
    (tmp_path / "closed").mkdir(mode=0o555)
    env = environment(folder, HOME=None, XDG_CACHE_HOME=str(tmp_path / "closed"), LC_ALL="C")
    run(folder, *plain_user("snakemake", "--cores", "2"), env=env, umask=0o077)
    assert (folder / "results").is_symlink()
    assert {path.stat().st_mode & 0o077 for path in elsewhere.rglob("*")} == {0}
    assert [*(folder / ".snakemake/cache").iterdir()]
    assert differing(finished, folder) == []
    is_done(folder)


def test_a_folder_of_results_that_is_read_only_is_named(broken: Path) -> None:
    os.chmod(broken / LIGHT, 0o555)
    line = refused(broken, "--forcerun", "evaluate_quantized", by=plain_user())
    assert line.startswith(f"{LIGHT}: takes no file from this user, but {LIGHT}/")


def test_a_folder_that_this_user_may_only_read_is_named(broken: Path) -> None:
    shutil.rmtree(broken / ".snakemake")
    os.chmod(broken, 0o555)
    line = refused(broken, by=plain_user())
    assert line.startswith(f"{broken}: no run can write here: Permission denied; give this user the right")
    os.chmod(broken, 0o755)


def test_results_that_are_a_link_to_nowhere_are_named(broken: Path) -> None:
    shutil.rmtree(broken / "results")
    (broken / "results").symlink_to(broken.parent / "nowhere")
    line = refused(broken)
    assert line == "results: is no folder, or a link that leads nowhere; put a folder there"


# Clocks -----------------------------------------------------------------------------------------------


def test_an_input_from_the_future_is_named_before_anything_is_removed(finished: Path, broken: Path) -> None:
    os.utime(broken / "weights/model.safetensors", (LATE, LATE))
    line = refused(broken, "--forcerun", "export")
    assert line.startswith("weights/model.safetensors: changed at 2096-")
    os.utime(broken / "weights/model.safetensors")
    snakemake(broken)
    assert differing(finished, broken) == []


def test_results_of_a_clock_that_was_ahead_are_set_right(finished: Path, broken: Path) -> None:
    for path in (broken / "results").rglob("*"):
        os.utime(path, (LATE, LATE))
    for path in (broken / LIGHT).iterdir():
        path.unlink()
    said = snakemake(broken)
    assert f"{HEAVY}/qparams.json: its time was in the future; it has the time of now" in said
    assert differing(finished, broken) == []
    is_done(broken)


# Trust ------------------------------------------------------------------------------------------------


def test_results_of_other_code_are_not_verified(broken: Path) -> None:
    path = broken / "src/ptq2themoon/evaluate/metrics.py"
    path.write_text(path.read_text() + "\n# another formula\n")
    said = verify(broken, status=2)
    assert f"{LIGHT}/metrics.sidecar.json: code: made by other code than is here: recorded " in said
    assert "top1.png" not in said  # figures do not use it
    assert "evaluate_quantized" in snakemake(broken, "--dry-run")
