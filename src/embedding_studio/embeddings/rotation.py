"""A rotation of vectors after which no component is more important than others.

Source: [gao2024] (``coder``); rotating by signs and Hadamard matrices is theirs too.
"""

import hashlib
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Floats = NDArray[np.float32]

ROUNDS = 8


def rotate(vectors: Vectors) -> Vectors:
    """Return [N, D] after a fixed rotation that leaves no component more important than others.

    Signs are flipped, a Hadamard matrix is applied to as many components as a power of two covers, in turn
    from the front and from the back, and the two halves are mixed, which what is covered twice alone does
    not do where it is little.
    """
    D = vectors.shape[1]
    covered = 1 << (D.bit_length() - 1)
    left, right, signs = _rotation(D)
    half, even = D // 2, np.float32(math.sqrt(0.5))
    rotated = vectors.copy()
    for k in range(ROUNDS):
        rotated *= signs[k]
        part = rotated[:, :covered] if k % 2 == 0 else rotated[:, D - covered :]
        square = part.reshape(-1, len(left), len(right))
        part[:] = (left @ square @ right).reshape(-1, covered)
        front, back = rotated[:, :half] * even, rotated[:, D - half :] * even
        rotated[:, :half], rotated[:, D - half :] = front + back, front - back
    return rotated


@lru_cache(maxsize=16)
def _rotation(D: int) -> tuple[Floats, Floats, Floats]:
    """Return two Hadamard matrices whose Kronecker product is the one applied, and the signs [ROUNDS, D]."""
    power = D.bit_length() - 1
    digest = hashlib.shake_256(f"rotation of {D} dimensions".encode()).digest(ROUNDS * -(-D // 8))
    bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8).reshape(ROUNDS, -1), axis=1)[:, :D]
    return _hadamard(power // 2), _hadamard(power - power // 2), 1 - 2 * bits.astype(np.float32)


@lru_cache(maxsize=16)
def rotation_matrix(D: int) -> Vectors:
    return rotate(np.eye(D, dtype=np.float32))


def _hadamard(power: int) -> Floats:
    """Return the matrix of 2 ** power rows whose columns have unit length."""
    matrix = np.ones((1, 1))
    for _ in range(power):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]]) / math.sqrt(2)
    return matrix.astype(np.float32)
