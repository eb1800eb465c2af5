"""Stage export: a timm model or an ONNX file to model.onnx and model.json, its outputs checked."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ptq2themoon.graph.sources.exporting import export
from ptq2themoon.stage import Stage, run
from ptq2themoon.vocabulary import records
from ptq2themoon.vocabulary.errors import UserError
from ptq2themoon.vocabulary.model_source import ONNX, OPSETS, PreprocessingChanges, Source
from ptq2themoon.vocabulary.validation import validate

# Arguments that would bring in weights that no sidecar names.
OTHER_WEIGHTS = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")


def json_object(text: str, option: str, example: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{option} {text}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{option} {text}: must be an object, as in {example}")
    return value


def timm_arguments(text: str) -> dict[str, Any]:
    arguments = json_object(text, "--arguments", '{"img_size": 384}')
    for key in OTHER_WEIGHTS:
        if key in arguments:
            raise UserError(f"--arguments {key}: not here; weights come from --source or --checkpoint")
    return arguments


def preprocessing(text: str) -> dict[str, Any]:
    changes = json_object(text, "--preprocessing", '{"mean": [0.5], "std": [0.5]}')
    return validate(PreprocessingChanges, changes, "--preprocessing").given()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    sources = "timm name with tag, local-dir:FOLDER, hf-hub:NAME@REVISION or onnx:FILE"
    parser.add_argument("--source", required=True, help=sources)
    parser.add_argument("--checkpoint", type=Path, help="weights, .safetensors or .pth; else timm's")
    parser.add_argument("--arguments", type=timm_arguments, default={}, help="JSON, for timm.create_model")
    parser.add_argument("--exporter", choices=list(OPSETS), default="torchscript")
    parser.add_argument("--opset", type=int, default=13)
    parser.add_argument("--preprocessing", type=preprocessing, default={}, help="JSON, in place of timm's")
    parser.add_argument("--features", action="store_true", help="the outputs are no logits")
    parser.add_argument("--out-model", type=Path, required=True)
    parser.add_argument("--out-info", type=Path, required=True)
    args = parser.parse_args()
    if args.source.startswith(ONNX) and (args.checkpoint or args.arguments):
        raise UserError(f"--source {args.source}: has weights of its own; no --checkpoint, no --arguments")
    return args


def main() -> None:
    args = parse_args()
    source = Source(args.source, args.checkpoint, args.arguments, args.preprocessing, not args.features)
    with Stage(
        "export",
        inputs=source.files(),
        outputs=[args.out_model, args.out_info],
        parameters={
            "source": args.source,
            "arguments": args.arguments,
            "exporter": None if source.onnx_file else args.exporter,
            "opset": None if source.onnx_file else args.opset,
            "preprocessing": args.preprocessing,
            "classifier": not args.features,
        },
    ) as stage:
        facts = export(source, args.exporter, args.opset, stage.temporary(args.out_model))
        records.write(stage.temporary(args.out_info), facts)


if __name__ == "__main__":
    run(main)
