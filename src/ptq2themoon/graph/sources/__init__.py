"""Where models come from: timm, checkpoints, ONNX files; and how they are exported."""
