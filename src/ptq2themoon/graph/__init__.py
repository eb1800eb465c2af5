"""From a timm model to a fused ONNX graph whose every operator knows its role and block."""
