"""How well a quantized model does: accuracy, the error of each operator, attention."""
