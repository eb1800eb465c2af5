"""tools/Containerfile names what exists, installs the lock, and has in it what a run needs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from clones import PARTS, ROOT, run
from fake_python import FAKE_PYTHON
from tiny_run import PARAMS, snakemake, tiny_clone

from ptq2themoon.console.commands import main

DEFINITION = (ROOT / "tools/Containerfile").read_text(encoding="utf-8")
BASE = "docker.io/library/debian:bookworm-slim"


def steps_of(definition: str) -> list[tuple[str, str]]:
    """Its instructions, each with its words, without comments and continued lines."""
    lines = [line for line in definition.splitlines() if line and not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(head, rest) for head, _, rest in (line.partition(" ") for line in whole)]


STEPS = steps_of(DEFINITION)
INSTALL = next(i for i, (head, rest) in enumerate(STEPS) if head == "RUN" and "environment.sh" in rest)


def copies(steps: list[tuple[str, str]]) -> dict[str, str]:
    """Each file or folder of the repository, and where it is copied to."""
    words = [shlex.split(rest) for head, rest in steps if head == "COPY"]
    return {source: target for *sources, target in words for source in sources}


def values(head: str) -> list[str]:
    return [rest for name, rest in STEPS if name == head]


def test_what_is_copied_exists_and_is_all_that_a_run_needs() -> None:
    assert [source for source in copies(STEPS) if not (ROOT / source).exists()] == []
    assert {*PARTS, "params.yaml", "resources"} <= copies(STEPS).keys()
    last = copies(STEPS[INSTALL:])
    assert {source: target for source, target in last.items() if target not in ("./", source)} == {}


def test_python_is_that_of_the_lock_and_of_debian() -> None:
    """Debian 12 has Python 3.11 and no other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = re.fullmatch(r">=(3\.\d+),.*", project["requires-python"])
    assert python
    assert values("FROM") == [BASE]
    package = f"python{python[1]}-venv"
    (apt,) = [rest for rest in values("RUN") if "apt-get install" in rest]
    assert package in apt
    assert f"apt install {package}" in (ROOT / "tools/environment.sh").read_text()
    assert f"tools/environment.sh python{python[1]} " in STEPS[INSTALL][1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the CUDA packages are left out")
def test_the_whole_lock_is_installed_from_what_is_copied_before(tmp_path: Path) -> None:
    folder, bin = tmp_path / "image", tmp_path / "bin"
    bin.mkdir()
    (bin / "python3.11").write_text(FAKE_PYTHON)
    (bin / "python3.11").chmod(0o755)
    for source, target in copies(STEPS[:INSTALL]).items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, folder / target)
    seen = os.environ | {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}", "TORCH_INDEX": ""}
    done = subprocess.run(
        ["sh", "-c", STEPS[INSTALL][1]], cwd=folder, env=seen, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    installed = sorted((folder / "installed.log").read_text().splitlines())
    assert installed == sorted(
        re.findall(r"^[a-z0-9-]+==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    )
    build = "import sys; from setuptools.build_meta import build_editable; print(build_editable(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_it_runs_as_no_root_with_the_environment_on_the_path() -> None:
    assert STEPS[-2:] == [("USER", "1000:1000"), ("WORKDIR", "/work")]
    assert not any(head == "USER" for head, _ in STEPS[:-2])
    home = values("WORKDIR")[0]
    assert f"PATH={home}/.venv/bin:$PATH" in " ".join(values("ENV"))


def test_it_names_no_host() -> None:
    """Another registry or mirror is said at build time."""
    commands = "\n".join(rest for _, rest in STEPS)
    assert "://" not in commands
    assert not re.search(r"--index|--trusted|--find-links|pip\.conf", commands)


# Built and run ------------------------------------------------------------------------------------

IMAGE = "ptq2themoon-tested"
BYTES = 25e9  # of disk: the layer with the environment is there three times while it is written
# What this machine needs besides, such as `--isolation chroot --network host` and mounts of pip's settings.
BUILDAH = shlex.split(os.environ.get("PTQ2THEMOON_BUILDAH", ""))


def lacking() -> str:
    """Why the image cannot be built here; "" where it can."""
    if not shutil.which("buildah"):
        return "buildah"
    there = subprocess.run(["buildah", "inspect", "--type", "image", BASE], capture_output=True, check=False)
    if there.returncode:
        return f"the image {BASE}"
    if shutil.disk_usage("/var/tmp").free < BYTES:
        return f"{BYTES / 1e9:.0f} GB of disk"
    container = run(ROOT, "buildah", "from", BASE, env=dict(os.environ)).strip()
    tried = subprocess.run(["buildah", "run", *BUILDAH, container, "--", "true"], capture_output=True)
    run(ROOT, "buildah", "rm", container, env=dict(os.environ))
    return "what containers need here, in PTQ2THEMOON_BUILDAH" if tried.returncode else ""


@pytest.mark.slow
def test_a_run_in_the_image_gives_the_results_of_one_outside(tmp_path: Path) -> None:
    if missing := lacking():
        pytest.skip(f"missing: {missing}")
    inside, outside = (tmp_path / name for name in ("inside", "outside"))
    for folder in (inside, outside):
        folder.mkdir()
        tiny_clone(folder)
        (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    (inside / "resources").unlink()
    shutil.copytree(ROOT / "resources", inside / "resources")
    metrics = "results/tiny/papers/w8a8-n6-s0/metrics.json"
    snakemake(outside, "--", metrics)
    seen = dict(os.environ)
    build = ["buildah", "build", "--layers", *BUILDAH, "--file", "tools/Containerfile", "--tag", IMAGE, "."]
    run(ROOT, *build, env=seen)
    if os.geteuid() == 0:
        run(inside, "chown", "--recursive", "1000:1000", ".", env=seen)
    container = run(inside, "buildah", "from", IMAGE, env=seen).strip()
    try:
        mounts = ["--volume", f"{inside}:/work", "--env", "PYTHONPATH=/work/src"]
        enter = ["buildah", "run", *BUILDAH, *mounts, container, "--"]
        assert run(inside, *enter, "id", "-u", env=seen) == "1000\n"
        run(inside, *enter, "snakemake", "--cores", "2", "--", metrics, env=seen)
    finally:
        run(inside, "buildah", "rm", container, env=seen)
        run(inside, "buildah", "rmi", IMAGE, env=seen)
    ended = CliRunner().invoke(main, ["compare", str(outside), str(inside)])
    assert ended.exit_code == 0, ended.output
    assert "no difference beyond noise" in ended.output
