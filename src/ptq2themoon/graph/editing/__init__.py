"""An ONNX graph that can be asked, edited and run."""
