"""Ways to deploy, apart from what needs onnx: the parameters of a workflow name them too."""

from __future__ import annotations

from typing import Literal, get_args

Mode = Literal["faithful", "fast"]
Profile = Literal["onnxruntime", "tensorrt"]
MODES: tuple[Mode, ...] = get_args(Mode)
PROFILES: tuple[Profile, ...] = get_args(Profile)
