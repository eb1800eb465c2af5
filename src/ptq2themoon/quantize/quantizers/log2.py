"""Logarithmic quantization to powers of two, for values from 0 up such as a softmax's.

FQ-ViT (Lin et al., IJCAI 2022, arXiv 2111.13824), section 3.3, and Miyashita et al., arXiv 1603.01025:

    code = round(-log2(x / scale)), values with a code of 2^bits or more become 0,    x^ = scale * 2^-code.

A product with such a value is a shift of bits: hardware can have it, runtimes do not.
"""

from __future__ import annotations

from ptq2themoon.quantize.quantizers.base_powers import Powers


class Log2(Powers):
    """scale * 2^-code for codes 0 to 2^bits - 1; smaller values are 0. Per tensor."""

    kind = "log2"
    codes_per_octave = 1.0


QUANTIZER = Log2
