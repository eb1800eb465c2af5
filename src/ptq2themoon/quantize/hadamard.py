"""Orthogonal matrices that spread a vector over all channels: randomized Hadamard matrices, and others.

A Hadamard matrix of size n has entries of one magnitude and orthogonal rows. Known here: those of Sylvester
(doubling) and of Paley (from squares in a field of q elements, q prime): q + 1 where q is 3 mod 4, and
2 (q + 1) where q is 1 mod 4. That gives 12, 20, 28, 36, 44 and 60 times any power of two: all widths of the
usual Vision Transformers.
"""

from __future__ import annotations

import numpy as np


def random_rotation(size: int, rng: np.random.Generator) -> np.ndarray:
    """D H / sqrt(size) with signs D drawn, float64 [size, size]; random where no Hadamard matrix is known."""
    hadamard = hadamard_matrix(size)
    if hadamard is not None:
        return rng.choice([-1.0, 1.0], size)[:, None] * hadamard / np.sqrt(size)
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))  # else it would not be drawn evenly


def keeping_ones(rotation: np.ndarray) -> np.ndarray:
    """The rotation, followed by the one reflection after which R 1 = 1 and 1^T R = 1^T.

    With u = 1 / sqrt(n) and w = R^T u, the reflection of w - u takes the row w to u: u^T R P = u^T. It
    changes entries by the order of 1 / n, where they are of the order of 1 / sqrt(n).
    """
    u = np.full(len(rotation), 1 / np.sqrt(len(rotation)))
    difference = u @ rotation - u
    length = difference @ difference
    if length < 1e-24:
        return rotation
    return rotation - 2 * np.outer(rotation @ difference, difference) / length


def hadamard_matrix(size: int) -> np.ndarray | None:
    """Of entries 1 and -1, float64 [size, size]; None where neither construction gives one."""
    power = size & -size
    while power:
        first = _first(size // power)
        if first is not None:
            for _ in range(power.bit_length() - 1):
                first = np.block([[first, first], [first, -first]])
            return first
        power //= 2  # of 12 = 4 * 3 no factor 2 may be left to doubling
    return None


def _first(size: int) -> np.ndarray | None:
    """A matrix that is not made by doubling."""
    if size == 1:
        return np.ones((1, 1))
    if size % 4:
        return None
    if _is_prime(size - 1):
        skew = _bordered(size - 1)
        skew[1:, 0] = -1
        return skew + np.eye(size)
    q = size // 2 - 1
    if _is_prime(q) and q % 4 == 1:
        one = np.array([[1.0, 1.0], [1.0, -1.0]])
        other = np.array([[1.0, -1.0], [-1.0, -1.0]])
        return np.kron(_bordered(q), one) + np.kron(np.eye(q + 1), other)
    return None


def _bordered(q: int) -> np.ndarray:
    """Jacobsthal's matrix, 1 where the difference of two elements is a square, else -1; in a border of 1."""
    squares = {i * i % q for i in range(1, q)}
    character = np.array([0.0, *(1.0 if i in squares else -1.0 for i in range(1, q))])
    index = np.arange(q)
    found = np.ones((q + 1, q + 1))
    found[0, 0] = 0
    found[1:, 1:] = character[(index[:, None] - index) % q]
    return found


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, int(number**0.5) + 1))
