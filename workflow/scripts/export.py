"""Stage export: a timm model to model.onnx and model.json, logits checked against PyTorch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ptq2themoon.errors import UserError
from ptq2themoon.graph.export import Source, export, load_model
from ptq2themoon.stage import Stage, run, write_json


def timm_arguments(text: str) -> dict[str, Any]:
    """A JSON object; what would bring in weights that no sidecar names is refused."""
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise UserError(f"--arguments {text}: not JSON ({error})") from None
    if not isinstance(arguments, dict):
        raise UserError(f'--arguments {text}: must be an object, as in {{"img_size": 384}}')
    for key in ("checkpoint_path", "pretrained"):
        if key in arguments:
            raise UserError(f"--arguments {key}: not here; weights come from --source or --checkpoint")
    return arguments


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", required=True, help="timm name with tag, or local-dir:FOLDER")
    parser.add_argument("--checkpoint", type=Path, help="weights, .safetensors or .pth; else timm's")
    parser.add_argument("--arguments", type=timm_arguments, default={}, help="JSON, for timm.create_model")
    parser.add_argument("--opset", type=int, default=13)
    parser.add_argument("--out-model", type=Path, required=True)
    parser.add_argument("--out-info", type=Path, required=True)
    return parser.parse_args()


def weight_files(source: Source) -> list[Path]:
    """The local files that decide the model."""
    files = [source.checkpoint] if source.checkpoint is not None else []
    folder = Path(source.source.removeprefix("local-dir:"))
    if source.source.startswith("local-dir:") and folder.is_dir():
        files += sorted(path for path in folder.iterdir() if path.is_file())
    return files


def main() -> None:
    args = parse_args()
    source = Source(args.source, args.checkpoint, args.arguments)
    with Stage(
        "export",
        inputs=weight_files(source),
        outputs=[args.out_model, args.out_info],
        parameters={"source": args.source, "arguments": args.arguments, "opset": args.opset},
    ) as stage:
        facts = export(load_model(source), source, args.opset, stage.temporary(args.out_model))
        write_json(stage.temporary(args.out_info), facts)


if __name__ == "__main__":
    run(main)
