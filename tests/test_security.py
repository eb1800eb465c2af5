"""No code runs from weights, data or configuration, and a model reads nothing outside its file."""

from __future__ import annotations

import ast
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_stages
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_stages import ROOT, files, run_stage

from ptq2themoon.graph.editing.onnx_graph import Graph
from ptq2themoon.quantize.simulation import SimulatedModel
from ptq2themoon.vocabulary.errors import UserError

# The sources -----------------------------------------------------------------------------------------


def sources() -> list[Path]:
    """Every Python file that is part of the project; of a copy without git, every one that there is."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\n") if name and (ROOT / name).is_file()]
    folders = ("src", "workflow", "resources", "tools", "tests")
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


SOURCES = sources()
SERIALISERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
# A test needs pickles to see them refused.
MAKES_PICKLES = {
    Path("tests/test_security.py"),
    Path("tests/data/test_torchvision_source.py"),
    Path("tests/quantize/test_qparams.py"),
}
YAML_LOADERS = {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}


def test_there_are_sources() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in SOURCES}
    assert {"src", "workflow", "tests", "resources"} <= names


def imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []


def faults(tree: ast.AST, path: Path) -> Iterator[str]:
    """What must not stand in a source, as `line: what`."""
    for node in ast.walk(tree):
        for module in imports(node):
            if module.split(".")[0] in SERIALISERS and path not in MAKES_PICKLES:
                yield f"{node.lineno}: import {module}"
            if module.split(".")[0] == "ppq" and path.parts[0] != "tests" and path.name != "ppq_compat.py":
                yield f"{node.lineno}: import {module}, not through ppq_compat"
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {what}" for what in bad_call(node))
        if isinstance(node, ast.ExceptHandler) and hides(node):
            yield f"{node.lineno}: an exception that nobody hears of"


def bad_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "pd.read_pickle"):
        yield name
    if name.endswith("torch.load") and "weights_only" not in keywords:
        yield "torch.load without weights_only=True"
    if keywords.get("allow_pickle", "False") != "False":
        yield f"{name} with allow_pickle"
    if keywords.get("weights_only", "True") != "True":
        yield f"{name} with weights_only={keywords['weights_only']}"
    if keywords.get("shell", "False") != "False":
        yield f"{name} with shell"
    if keywords.get("trust_remote_code", "False") != "False":
        yield f"{name} with trust_remote_code"
    module, _, function = name.rpartition(".")
    if module == "yaml" and function in YAML_LOADERS and "Safe" not in keywords.get("Loader", ""):
        yield f"{name} without SafeLoader"


def hides(handler: ast.ExceptHandler) -> bool:
    """`except:` of any kind, or an `except Exception` that does nothing."""
    if handler.type is None:
        return True
    nothing = all(
        isinstance(node, ast.Pass | ast.Continue)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in handler.body
    )
    return nothing and ast.unparse(handler.type) in ("Exception", "BaseException")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_sources_run_no_foreign_code_and_hide_no_error(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert list(faults(tree, path.relative_to(ROOT))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from marshal import loads", "import joblib as j", "import ppq.core",
        "from ppq import core", "torch.load(p)", "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)", "yaml.load(t)", "yaml.load(t, Loader=yaml.Loader)",
        "yaml.unsafe_load(t)", "eval(t)", "exec(t)", "subprocess.run(t, shell=True)", "os.system(t)",
        "try:\n    f()\nexcept:\n    g()", "try:\n    f()\nexcept Exception:\n    pass",
        "for x in y:\n    try:\n        f()\n    except Exception as e:\n        continue",
    ],
)  # fmt: skip
def test_the_scan_finds(line: str) -> None:
    assert len(list(faults(ast.parse(line), Path("src/x.py")))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(p, weights_only=True)", "yaml.load(t, Loader=yaml.SafeLoader)", "yaml.safe_load(t)",
        "model.eval()", "np.load(p)", "np.load(p, allow_pickle=False)", "from ptq2themoon import ppq_compat",
        "try:\n    f()\nexcept Exception as error:\n    raise UserError(str(error)) from error",
        "try:\n    f()\nexcept KeyError:\n    pass",
    ],
)  # fmt: skip
def test_the_scan_lets_pass(line: str) -> None:
    assert list(faults(ast.parse(line), Path("src/x.py"))) == []


# Weights ---------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A folder in which every stage ran, to change."""
    chain = tiny_stages.chain(tmp_path_factory.getbasetemp())
    return shutil.copytree(chain, tmp_path / "copy", symlinks=True)


def refused(folder: Path, stage: str, **changes: Any) -> str:
    """The one line with which `stage` refuses what is in `folder`; it writes nothing."""
    before = files(folder)
    ended = run_stage(folder, stage, **changes)
    assert ended.status == 2
    assert files(folder) == before
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.err.endswith(f"{line}\n")
    return line


class Payload:
    """Pickled, it makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_the_payload_works(tmp_path: Path) -> None:
    content = pickle.dumps(Payload(tmp_path / "ran"))
    reader = getattr(pickle, "loads")  # noqa: B009 (the scan above forbids it everywhere else)
    reader(content)
    assert (tmp_path / "ran").exists()


def write_payload(path: Path, mark: Path, how: str) -> None:
    state = {"head.weight": torch.zeros(2), "payload": Payload(mark)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "torch")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["pickle", "torch", "old torch"])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.bin"])
def test_a_malicious_checkpoint(copy: Path, name: str, how: str) -> None:
    write_payload(copy / name, copy / "ran", how)
    line = refused(copy, "export", source="vit_tiny_patch16_224", checkpoint=name)
    assert line.startswith(f"error: {name}: not readable as weights (")
    assert not (copy / "ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["pickle", "torch", "old torch"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pth"])
def test_a_malicious_folder_of_weights(copy: Path, name: str, how: str) -> None:
    """timm reads these, not we."""
    (copy / "weights/model.safetensors").unlink()
    write_payload(copy / "weights" / name, copy / "ran", how)
    line = refused(copy, "export")
    assert line.startswith("error: model 'local-dir:weights': timm cannot make it (")
    assert not (copy / "ran").exists()


@pytest.mark.parametrize(
    "arguments",
    ['{"checkpoint_path": "w.pth"}', '{"pretrained_cfg_overlay": {"file": "w.pth"}, "num_classes": 3}'],
)
def test_a_malicious_checkpoint_among_the_arguments(copy: Path, arguments: str) -> None:
    write_payload(copy / "w.pth", copy / "ran", "torch")
    refused(copy, "export", source="vit_tiny_patch16_224", arguments=arguments)
    assert not (copy / "ran").exists()


@pytest.mark.parametrize(
    ("stage", "path"),
    [
        ("draw_calibration", "calibration.safetensors"),
        ("calibrate", "out/calibration.safetensors"),
        ("evaluate", "out/q/qparams.safetensors"),
        ("evaluate", "out/q/qparams.json"),
        ("evaluate", "evaluation.safetensors"),
        ("evaluate", "out/fused.onnx"),
        ("fuse", "out/model.onnx"),
        ("plot_attention", "out/q/attention_maps.safetensors"),
    ],
)
def test_a_pickle_in_place_of_any_file(copy: Path, stage: str, path: str) -> None:
    (copy / path).unlink()
    write_payload(copy / path, copy / "ran", "pickle")
    assert path in refused(copy, stage)
    assert not (copy / "ran").exists()


def test_arrays_of_objects(copy: Path) -> None:
    """numpy's own format can hold pickles; it is not read at all."""
    np.save(copy / "images.npy", np.array([Payload(copy / "ran")], dtype=object))
    line = refused(copy, "draw_calibration", source="images.npy")
    assert line == "error: images.npy: arrays are read from .safetensors files only"
    assert not (copy / "ran").exists()


# Configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['touch ran']", "!!python/name:os.system", "!!python/object:x.Y {}"],
)
def test_yaml_is_plain_data(copy: Path, tag: str) -> None:
    (copy / "recipes/mine.yaml").write_text(f"extends: vanilla\ndescription: {tag}\n")
    line = refused(copy, "calibrate", recipe="recipes/mine.yaml")
    assert line.startswith(
        "error: recipes/mine.yaml: not readable as YAML: could not determine a constructor"
    )
    assert not (copy / "ran").exists()


# External data of ONNX -------------------------------------------------------------------------------

ONNX_STAGES = {
    "fuse": "out/model.onnx",
    "calibrate": "out/fused.onnx",
    "reference": "out/fused.onnx",
    "evaluate": "out/fused.onnx",
    "operator_errors": "out/fused.onnx",
    "attention_maps": "out/fused.onnx",
}


def largest(model: onnx.ModelProto) -> TensorProto:
    return max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))


def put_outside(tensor: TensorProto, location: str) -> bytes:
    """Let a constant point to `location`; its bytes."""
    content = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="length", value=str(len(content)))
    return content


def leave(folder: Path, how: str) -> tuple[str, Path]:
    """(location as the model gives it, the file that it means) for a way out of the model's folder."""
    secret = folder / "secret.bin"
    match how:
        case "up":
            return "../secret.bin", secret
        case "absolute":
            return str(secret), secret
        case "link":
            (folder / "out/weights.bin").symlink_to(secret)
            return "weights.bin", secret
        case "linked folder":
            (folder / "out/there").symlink_to(folder)
            return "there/secret.bin", secret
    raise ValueError(how)


WAYS = ["up", "absolute", "link", "linked folder"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("stage", ONNX_STAGES)
def test_weights_outside_the_model(copy: Path, stage: str, how: str) -> None:
    path = copy / ONNX_STAGES[stage]
    model = onnx.load(path)
    location, secret = leave(copy, how)
    secret.write_bytes(put_outside(largest(model), location))
    onnx.save(model, path)
    line = refused(copy, stage)
    expected = (
        f"error: {ONNX_STAGES[stage]}: its constants lie in {location!r}, which is not in the file's own "
    )
    assert line.startswith(f"{expected}folder; put the data there, not as a link, or save ")


@pytest.mark.parametrize("stage", ["fuse", "reference"])
def test_a_constant_operator_outside_the_model(copy: Path, stage: str) -> None:
    """Not among the initializers, where it is easily missed."""
    path = copy / ONNX_STAGES[stage]
    model = onnx.load(path)
    secret = copy / "secret.bin"
    tensor = numpy_helper.from_array(np.ones(10, np.float32), "told")
    secret.write_bytes(put_outside(tensor, "../secret.bin"))
    model.graph.node.append(helper.make_node("Constant", [], ["told"], "told", value=tensor))
    onnx.save(model, path)
    assert "constant 'told' lies outside the ONNX file" in refused(copy, stage)


@pytest.mark.parametrize("how", WAYS)
def test_the_library_alone_refuses_too(copy: Path, how: str) -> None:
    """Nothing outside is read even when no stage has looked at the model before."""
    path = copy / "out/fused.onnx"
    model = onnx.load(path)
    location, secret = leave(copy, how)
    secret.write_bytes(put_outside(largest(model), location))
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"PPQ cannot load this graph .*lies outside"):
        SimulatedModel(onnx.load(path, load_external_data=False), "cpu")
    with pytest.raises(UserError, match="lies outside the ONNX file"):
        Graph(onnx.load(path, load_external_data=False))
