"""The study of channel-wise quantization: which operators of a Vision Transformer need per-channel scales?"""
