"""What every method keeps to, whatever it does: tests over all methods that there are.

A method is tried with the first recipe of recipes/ that calls it, or else alone on the settings of `vanilla`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from families import image_shape
from onnx import ModelProto
from tiny_models import random_images
from tiny_quantized import HEADER, RECIPES, Tiny
from torch import Tensor

from ptq2themoon.deploy.int8_model import deploy
from ptq2themoon.graph.editing.onnx_run import session
from ptq2themoon.graph.sources.onnx_files import read_graph
from ptq2themoon.methods import made, method_class, method_names
from ptq2themoon.methods.base import Method
from ptq2themoon.pipeline import quantize
from ptq2themoon.quantize.model import QuantizedModel
from ptq2themoon.quantize.qparams import read_qparams, write_qparams
from ptq2themoon.quantize.simulation import SimulatedModel, simulated
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.modes import Mode
from ptq2themoon.vocabulary.recipe_language import MethodCall
from ptq2themoon.vocabulary.recipes import Recipe, load_recipe

SHORT = {"iterations": 3, "passes": 1, "bound": 10.0, "generator_steps": 3, "student_steps": 2, "batch": 4}
OTHERS = ("swin", "mobilevit")  # no class token, windows; convolutions between transformers
EVERY_METHOD = pytest.mark.parametrize("method", method_names())


def calls(path: Path, method: str) -> bool:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return any(call["name"] == method for call in content.get("methods", ()))


def recipe_of(method: str, folder: Path) -> Recipe:
    own = RECIPES / f"{method}.yaml"
    others = (path for path in sorted(RECIPES.glob("*.yaml")) if calls(path, method))
    path = own if own.is_file() else next(others, None)
    if path is None:
        path = folder / "alone.yaml"
        (folder / "vanilla.yaml").write_bytes((RECIPES / "vanilla.yaml").read_bytes())
        path.write_text(yaml.safe_dump({"extends": "vanilla", "methods": [{"name": method}]}))
    return shortened(load_recipe(path))


def shortened(recipe: Recipe) -> Recipe:
    """With few iterations of what trains or searches long: none of this is about how well it does."""
    calls = []
    for call in recipe.methods:
        fields = method_class(call.name).Settings.model_fields
        short = {name: value for name, value in SHORT.items() if name in fields}
        calls.append(MethodCall(name=call.name, **{**call.settings, **short}))
    return replace(recipe, methods=calls)


@dataclass
class Tried:
    """A method on a tiny model of one family."""

    tiny: Tiny
    recipe: Recipe
    reference: ModelProto
    before: bytes
    model: QuantizedModel
    images: Tensor

    @classmethod
    def on(cls, method: str, family: str, folder: Path) -> Tried:
        tiny = Tiny.of_family(family, folder)
        reference, recipe = read_graph(tiny.path), recipe_of(method, folder)
        before = reference.SerializeToString(deterministic=True)
        images = torch.from_numpy(random_images(3, *image_shape(family)))
        return cls(tiny, recipe, reference, before, again(tiny, recipe, reference, family), images)


def again(tiny: Tiny, recipe: Recipe, reference: ModelProto, family: str) -> QuantizedModel:
    batches = [torch.from_numpy(random_images(6, *image_shape(family), seed=seed)) for seed in (1, 2)]
    return quantize(reference, tiny.operators, recipe, (8, 8), batches, "cpu", seed=7)


def one_line(error: UserError) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    return text


@pytest.fixture(scope="module", params=method_names())
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried.on(request.param, "vit", tmp_path_factory.mktemp(request.param))


# Settings -------------------------------------------------------------------------------------------


@EVERY_METHOD
def test_a_method_is_found_by_its_name_and_made_from_a_recipe(method: str, tmp_path: Path) -> None:
    found = method_class(method)
    assert issubclass(found, Method)
    assert (found.__doc__ or "").strip()
    recipe = recipe_of(method, tmp_path)
    (call,) = (call for call in recipe.methods if call.name == method)
    assert isinstance(made(call), found)
    assert recipe.resolved()["methods"][0]["name"] in method_names()


@EVERY_METHOD
def test_an_unknown_setting_is_refused_in_one_line(method: str, tmp_path: Path) -> None:
    (tmp_path / "vanilla.yaml").write_bytes((RECIPES / "vanilla.yaml").read_bytes())
    path = tmp_path / "mine.yaml"
    content = {"extends": "vanilla", "methods": [{"name": method, "no_such_setting": 1}]}
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError) as error:
        load_recipe(path)
    said = one_line(error.value)
    assert said.startswith(f"{path}: methods[0]")
    assert "no_such_setting: unknown key; " in said


@EVERY_METHOD
def test_every_setting_has_a_default_and_a_description(method: str) -> None:
    settings = method_class(method).Settings
    settings()
    assert [name for name, field in settings.model_fields.items() if not field.description] == []


# What it makes --------------------------------------------------------------------------------------


def test_it_computes_and_every_slot_has_a_quantizer(tried: Tried) -> None:
    assert all(tensor.quantizer is not None for _, tensor in tried.model.slots())
    found = simulated(tried.model, "cpu")(tried.images)
    floating = SimulatedModel(tried.reference, "cpu")(tried.images)
    assert torch.isfinite(found).all()
    assert torch.nn.functional.cosine_similarity(found, floating).min() > 0.9


def test_the_reference_is_what_it_was_byte_for_byte(tried: Tried) -> None:
    assert tried.model.reference is tried.reference
    assert tried.reference.SerializeToString(deterministic=True) == tried.before


def test_a_rewrite_leaves_the_output_in_floating_point_equal(tried: Tried) -> None:
    floating = SimulatedModel(tried.reference, "cpu")(tried.images)
    rewritten = SimulatedModel(tried.model.rewritten, "cpu")(tried.images)
    assert (rewritten - floating).abs().max() <= 1e-5 * floating.abs().max()


def files(model: QuantizedModel, folder: Path) -> tuple[Path, Path]:
    folder.mkdir()
    paths = folder / "qparams.json", folder / "qparams.safetensors"
    write_qparams(model, HEADER, *paths)
    return paths


def test_the_same_images_and_seed_give_the_same_files(tried: Tried, tmp_path: Path) -> None:
    first = files(tried.model, tmp_path / "first")
    second = files(again(tried.tiny, tried.recipe, tried.reference, "vit"), tmp_path / "second")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_what_is_saved_and_read_gives_the_same_bits(tried: Tried, tmp_path: Path) -> None:
    read = read_qparams(*files(tried.model, tmp_path / "saved")).model(tried.reference)
    assert read.edited == tried.model.edited
    assert read.rewritten == tried.model.rewritten
    assert [slot for slot, _ in read.slots()] == [slot for slot, _ in tried.model.slots()]
    found, wanted = (simulated(model, "cpu")(tried.images) for model in (read, tried.model))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_it_is_deployed_or_says_why_not(tried: Tried, mode: Mode) -> None:
    try:
        deployed = deploy(tried.model.edited, tried.model.quantized, mode)
    except UserError as error:
        pytest.skip(one_line(error))
    running = session(deployed.model, quantized=True)
    found = running.run(None, {running.get_inputs()[0].name: tried.images.numpy()})[0]
    wanted = simulated(tried.model, "cpu")(tried.images).numpy()
    assert found.shape == wanted.shape
    cosine = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosine.min() > 0.9


# Other families -------------------------------------------------------------------------------------


def families_in_turn(method: str) -> list[str]:
    """All of them; which comes first differs from method to method."""
    first = method_names().index(method) % len(OTHERS)
    return [*OTHERS[first:], *OTHERS[:first]]


def works_on(method: str, family: str, folder: Path) -> bool:
    """Whether a method takes a family and keeps to the contract there; else it must say so in one line."""
    folder.mkdir()
    try:
        tried = Tried.on(method, family, folder)
    except UserError as error:
        one_line(error)
        return False
    test_it_computes_and_every_slot_has_a_quantizer(tried)
    test_the_reference_is_what_it_was_byte_for_byte(tried)
    test_a_rewrite_leaves_the_output_in_floating_point_equal(tried)
    test_what_is_saved_and_read_gives_the_same_bits(tried, folder)
    return True


@EVERY_METHOD
def test_it_works_on_a_family_that_is_no_deit(method: str, tmp_path: Path) -> None:
    assert any(works_on(method, family, tmp_path / family) for family in families_in_turn(method))


@pytest.mark.slow
@EVERY_METHOD
def test_it_works_on_every_other_family_or_says_why_not(method: str, tmp_path: Path) -> None:
    found = [works_on(method, family, tmp_path / family) for family in OTHERS]
    assert any(found)


# The package ----------------------------------------------------------------------------------------


def test_methods_are_the_modules_of_the_package_and_nothing_lists_them() -> None:
    folder = Path(made.__code__.co_filename).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert set(method_names()) == modules
