"""Post-training quantization of Vision Transformers, every method side by side."""

__version__ = "0.1.0"
