"""One set of versions: lock, pyproject.toml and environment.yml agree, and the installer does as it says."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from fake_python import FAKE_PYTHON

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
CONDA_NAMES = {"huggingface-hub": "huggingface_hub", "torch": "pytorch"}
PARTS = {"pydantic-core"}  # importable without being declared: the declared package pins it exactly


class Entry(NamedTuple):
    """A package of the lock."""

    version: str
    hashes: list[str]
    via: set[str]


def pins(requirements: list[str]) -> dict[str, str]:
    """`["a==1"]` -> `{"a": "1"}`; anything but an exact version is an error."""
    found = [re.fullmatch(r"([a-z0-9_-]+)==([0-9][\w.]*)", line) for line in requirements]
    return {match[1]: match[2] for match in found if match or pytest.fail(f"not exact: {requirements}")}


def lock_entries(lock: str) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for block in re.split(r"\n(?=[^\s#])", lock)[1:]:
        head, comments = block.split("# via", 1)
        ((name, pinned),) = pins([head.split(" ", 1)[0]]).items()
        assert name not in entries, f"{name} stands twice in the lock"
        hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})(?= |\n)", head)
        entries[name] = Entry(pinned, hashes, set(re.findall(r"[a-z][\w-]+", comments)))
    return entries


PEERS_LOCK = (ROOT / "requirements-peers.lock").read_text()
ENTRIES, PEERS = lock_entries(LOCK), lock_entries(PEERS_LOCK)
RUNTIME = pins(PYPROJECT["project"]["dependencies"])
DIRECT = RUNTIME | pins(PYPROJECT["project"]["optional-dependencies"]["dev"])


def test_every_lock_entry_is_exact_and_hashed() -> None:
    assert len(ENTRIES) == LOCK.count("==") > len(DIRECT)
    assert [name for name, entry in ENTRIES.items() if not entry.hashes] == []


def test_lock_names_no_host_and_no_index() -> None:
    assert re.findall(r"://|--index|--extra|--find-links|--trusted", LOCK) == []


def test_lock_has_the_versions_of_pyproject() -> None:
    assert {name: ENTRIES[name].version for name in DIRECT} == DIRECT
    asked_for = {name for name, entry in ENTRIES.items() if "ptq2themoon" in entry.via}
    assert asked_for == set(DIRECT), "run `make lock`"


def test_the_extra_for_slurm_is_exact_and_the_same_for_conda() -> None:
    asked_for = pins(PYPROJECT["project"]["optional-dependencies"]["slurm"])
    comments = re.findall(r"^  # - (.*)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    assert pins(comments) == asked_for
    assert not set(asked_for) & set(ENTRIES)


def test_lock_of_the_other_tools_is_whole_and_has_the_versions_of_pyproject() -> None:
    asked_for = pins(PYPROJECT["dependency-groups"]["peers"])
    assert {name: PEERS[name].version for name in asked_for} == asked_for
    assert {name for name, entry in PEERS.items() if "ptq2themoon" in entry.via} == set(asked_for)
    assert len(PEERS) == PEERS_LOCK.count("==") > len(asked_for)
    assert [name for name, entry in PEERS.items() if not entry.hashes] == []
    assert re.findall(r"://|--index|--extra|--find-links|--trusted", PEERS_LOCK) == []


def test_other_tools_run_beside_the_same_versions_and_apart() -> None:
    """What both environments import of ours is the same; torch is in one, the other tools in the other."""
    shared = set(pins(PYPROJECT["dependency-groups"]["peers"])) & set(DIRECT)
    models, ours = {"numpy", "onnx", "onnxruntime", "protobuf", "safetensors"}, {"pydantic", "pyyaml", "tyro"}
    assert shared == models | ours | {"setuptools"}
    assert {name: PEERS[name].version for name in shared} == {name: ENTRIES[name].version for name in shared}
    assert {"openvino", "nncf"} & set(ENTRIES) == set()
    assert {"torch", "ppq"} & set(PEERS) == set()


def test_build_backend_is_the_locked_one() -> None:
    assert pins(PYPROJECT["build-system"]["requires"]) == {"setuptools": ENTRIES["setuptools"].version}


def test_environment_yml_has_the_same_versions() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "ptq2themoon"
    python, *packages, pip = environment["dependencies"]
    assert python == "python=3.11"
    conda = {CONDA_NAMES.get(name, name): pinned for name, pinned in DIRECT.items() if name != "ppq"}
    assert pins(packages) == conda
    assert pins(pip["pip"]) == {"ppq": DIRECT["ppq"]}


@pytest.mark.parametrize("package", sorted(RUNTIME))
def test_installed_version_is_the_pinned_one(package: str) -> None:
    assert version(package).split("+")[0] == RUNTIME[package]


def test_imported_packages_are_declared() -> None:
    distributions = packages_distributions()
    undeclared = set()
    for folder in ("src", "workflow", "resources", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                for module in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                    owners = {owner.lower().replace("_", "-") for owner in distributions.get(module, [])}
                    if owners and not owners & {*DIRECT, *PARTS, "ptq2themoon"}:
                        undeclared.add(f"{path.relative_to(ROOT)}: {module}")
    assert not undeclared


def test_ci_runs_the_readme_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make test$\n^make slow$\n^make site$", script.read_text(), re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    assert "make run" in readme
    assert "make test" in readme


def locked_without_cuda() -> set[str]:
    command = 'source tools/environment.sh; locked "some index"'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    kept = set(re.findall(r"^([a-z0-9-]+)==", done.stdout, re.MULTILINE))
    assert done.stdout.count("--hash=") == sum(len(ENTRIES[name].hashes) for name in kept)
    return kept


def test_cpu_torch_leaves_out_exactly_what_only_cuda_torch_needs() -> None:
    removed = set(ENTRIES) - locked_without_cuda() - {"pip", "setuptools"}
    cuda = removed - {"torch", "torchvision"}
    assert removed >= {"torch", "torchvision", "triton", "nvidia-cudnn-cu13"}
    assert {name: ENTRIES[name].via for name in cuda if not ENTRIES[name].via <= removed} == {}
    only_through_cuda = {name for name, entry in ENTRIES.items() if entry.via <= cuda}
    assert only_through_cuda <= removed


LOCKS = ("requirements.lock", "requirements-peers.lock")


class Installer:
    """tools/environment.sh in a folder of its own, with an interpreter that installs nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tools").mkdir()
        for name in (*LOCKS, "pyproject.toml", "tools/environment.sh"):
            shutil.copy(ROOT / name, folder / name)
        self.python = folder / "python"
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)

    def run(self, index: str = "", python: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.folder / "tools/environment.sh", python or self.python, index],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )

    def log(self, name: str = "calls.log") -> list[str]:
        """The lines logged since the last call."""
        path = self.folder / name
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def installer(tmp_path: Path) -> Installer:
    return Installer(tmp_path)


def test_environment_is_installed_once(installer: Installer) -> None:
    first = installer.run()
    assert "environment is ready" in first.stdout, first.stderr
    calls = installer.log()
    assert all("--require-hashes" in call for call in calls if " -r " in call)
    assert [call for call in calls if "--editable" in call]
    second = installer.run()
    assert second.stdout == "The environment is up to date.\n"
    assert installer.log() == []


def test_other_tools_are_installed_once_from_their_lock(installer: Installer) -> None:
    command = [installer.folder / "tools/environment.sh", "--peers", installer.python]
    broken = os.environ | {"FAKE_FAILS_AT": "check"}
    assert subprocess.run(command, env=broken, capture_output=True).returncode != 0
    done = subprocess.run(command, capture_output=True, text=True)
    assert "is ready" in done.stdout, done.stderr
    calls = installer.log()
    assert all("--require-hashes" in call for call in calls if " -r " in call)
    assert [call for call in calls if "requirements-peers.lock" in call]
    assert not (installer.folder / ".venv").exists()
    again = subprocess.run(command, capture_output=True, text=True)
    assert "is up to date" in again.stdout
    assert installer.log() == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the CUDA packages are left out")
def test_the_whole_lock_is_installed(installer: Installer) -> None:
    installer.run()
    assert sorted(installer.log("installed.log")) == sorted(f"{name}==" for name in ENTRIES)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the CUDA packages are left out")
@pytest.mark.parametrize("seen", [True, False])
def test_a_machine_without_gpu_is_told_of_the_smaller_torch(seen: bool) -> None:
    command = f"source tools/environment.sh; gpu_seen() {{ {str(seen).lower()}; }}; hint"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    hint = "make env TORCH_INDEX=https://download.pytorch.org/whl/cpu"
    assert (hint in done.stdout) != seen
    assert hint in (ROOT / "README.md").read_text()


def test_changed_lock_is_installed_again(installer: Installer) -> None:
    installer.run()
    with open(installer.folder / "requirements.lock", "a") as lock:
        lock.write("# changed\n")
    assert "environment is ready" in installer.run().stdout


@pytest.mark.parametrize("step", ["install --require-hashes", "--no-build-isolation", "check"])
def test_interrupted_installation_is_redone(installer: Installer, step: str) -> None:
    broken = installer.run(FAKE_FAILS_AT=step)
    assert broken.returncode != 0
    assert "ready" not in broken.stdout
    assert "environment is ready" in installer.run().stdout


def test_chosen_torch_index_is_used_and_kept(installer: Installer) -> None:
    index = "https://torch.example/whl/cpu"
    assert "environment is ready" in installer.run(index).stdout
    torch = f"install --index-url {index} torch=={RUNTIME['torch']} torchvision=={RUNTIME['torchvision']}"
    assert [call for call in installer.log() if call.endswith(torch)]
    installed = installer.log("installed.log")
    assert "numpy==" in installed
    assert "torch==" not in installed
    assert installer.run().stdout == "The environment is up to date.\n"


def test_missing_or_wrong_python_is_named(installer: Installer) -> None:
    missing = installer.run(python="python-that-is-missing")
    assert missing.returncode != 0
    assert "'python-that-is-missing' does not run" in missing.stderr
    wrong = installer.run(FAKE_VERSION="3.9")
    assert wrong.returncode != 0
    assert "is 3.9" in wrong.stderr
    assert "PYTHON=" in wrong.stderr
    assert not (installer.folder / ".venv").exists()
