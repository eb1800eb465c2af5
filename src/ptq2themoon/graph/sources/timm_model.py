"""A timm model by name, from the hub, from a local folder or with weights of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.model_config import resolve_input_data_config
from timm.layers import set_fused_attn
from timm.models import load_model_config_from_hf
from torch import nn

from ptq2themoon.graph.sources.checkpoints import FOREIGN, first_line, load_weights
from ptq2themoon.graph.sources.hub import how_to_provide, hub_access
from ptq2themoon.quiet import quiet
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_info import PreprocessingInfo
from ptq2themoon.vocabulary.model_source import (
    HUB,
    LOCAL,
    Source,
    arguments_problem,
    check_channels,
    local_config,
    of_each_channel,
)
from ptq2themoon.vocabulary.validation import validate


def load_model(spec: Source) -> nn.Module:
    """A timm model in evaluation mode, float32, with attention as plain operators.

    Raises:
        UserError: weights that are missing, of another architecture, not finite or not readable.
    """
    # PyTorch's fused attention is one operator that hides the scores and the softmax.
    set_fused_attn(False)
    model = _created(spec)
    if spec.checkpoint is not None:
        load_weights(model, spec.checkpoint)
    else:
        _check_classes(model, spec)
    model = model.float().eval()
    broken = [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"model {spec.source!r}: weights that are not finite: {', '.join(broken[:3])}")
    return model


def _created(spec: Source) -> nn.Module:
    own_weights, arguments = spec.checkpoint is None, dict(spec.arguments)
    # Asked for no classifier at once, timm would also let other weights be missing.
    headless = own_weights and arguments.get("num_classes") == 0
    if headless:
        del arguments["num_classes"]
    remote = spec.source.startswith(HUB) or (own_weights and not spec.source.startswith(LOCAL))
    with hub_access(remote) as reachable, quiet("timm"):
        try:
            _check_config(spec)
            model = timm.create_model(spec.source, pretrained=own_weights, **arguments)
            if headless:
                model.reset_classifier(0)  # type: ignore[operator]
        except Exception as error:  # whatever a model's own code, a hub or a broken file raises
            raise UserError(f"model {spec.source!r}: {_why_not(spec, error, reachable)}") from None
    return model


def _check_config(spec: Source) -> None:
    """Refuse sizes in a config.json that no model has: timm would make one of them and fill the memory."""
    if spec.source.startswith(LOCAL):
        local_config(Path(spec.source.removeprefix(LOCAL)))
    elif spec.source.startswith(HUB):
        name, place = spec.source.removeprefix(HUB), spec.arguments.get("cache_dir")
        facts, _, sizes = load_model_config_from_hf(name, cache_dir=place)
        if problem := arguments_problem({"pretrained_cfg": facts, "model_args": sizes}):
            raise UserError(f"its config.json: {problem[0]}: {problem[1]}")


def _why_not(spec: Source, error: Exception, reachable: bool) -> str:
    if not reachable and isinstance(error, OSError):
        return f"no network, and not fetched before; {how_to_provide(spec.source)}"
    if str(error).startswith("No pretrained weights exist"):
        return "timm knows no weights for it; name a tag that has some, or give `checkpoint: FILE`"
    hint = f"; {how_to_provide(spec.source)}" if isinstance(error, ConnectionError) else ""
    what = str(error) if isinstance(error, UserError) else first_line(error)
    return f"timm cannot make it ({what}){hint}"


def _check_classes(model: nn.Module, spec: Source) -> None:
    """Refuse a head that the weights do not have: timm would leave it random."""
    here = getattr(model, "num_classes", None)
    theirs = getattr(model, "pretrained_cfg", {}).get("num_classes")
    if here and theirs is not None and here != theirs:
        raise UserError(
            f"model {spec.source!r}: arguments.num_classes is {here}, but the weights' head has {theirs} "
            f"classes; leave it out, or give `checkpoint: FILE` with weights trained on {here}"
        )


def preprocessing_of(model: nn.Module, spec: Source) -> dict[str, Any]:
    """timm's preprocessing for the model as it is, with the changes of params.yaml.

    Raises:
        UserError: a size of image that the model is not made for, or values for other channels.
    """
    where, changes = f"model {spec.source!r}: preprocessing", dict(spec.preprocessing)
    with quiet("timm"):
        try:
            own = resolve_input_data_config(model)
            channels, *size = own["input_size"]
        except FOREIGN as error:  # of a config.json that anybody wrote
            raise UserError(f"{where}: timm cannot tell it ({first_line(error)})") from None
        asked = tuple(changes.get("input_size", own["input_size"]))
        check_channels(changes, asked[0], where)
        try:
            config = resolve_input_data_config(model, args=changes)
        except ValueError:
            raise UserError(f"{where}.{_wrong_size(asked, (channels, *size))}") from None
    try:
        values = of_each_channel({key: config[key] for key in PreprocessingInfo.model_fields}, channels)
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    except FOREIGN as error:
        raise UserError(f"{where}: timm cannot tell it ({first_line(error)})") from None
    validate(PreprocessingInfo, values, where)
    return values


def _wrong_size(asked: tuple[int, ...], own: tuple[int, ...]) -> str:
    if asked[0] != own[0]:
        return (
            f"input_size: images of {asked[0]} channels, but the model takes {own[0]}; "
            f"give `arguments: {{in_chans: {asked[0]}}}`"
        )
    size = str(asked[1]) if asked[1] == asked[2] else f"[{asked[1]}, {asked[2]}]"
    return (
        f"input_size: images of {asked[1]}x{asked[2]}, but its position embedding is fixed for "
        f"{own[1]}x{own[2]}; give `arguments: {{img_size: {size}}}`"
    )
