"""The Gram matrix of a matrix's rows, in half of the operations: it is symmetric."""

import math

import torch

BLOCKS, LEAST = 8, 128  # so many blocks of rows, of so many rows at least: smaller ones are not worth a call


def lower_gram(matrix: torch.Tensor) -> torch.Tensor:
    """MMᵀ of M (rows, columns) on and below the diagonal, which is all that `torch.linalg.eigvalsh` reads.

    Above it are zeros, or what is right. Where a gradient is asked for, all is right: that of `eigvalsh` is the one of
    a whole symmetric matrix.
    """
    if matrix.requires_grad:
        return matrix @ matrix.T
    rows = len(matrix)
    gram = matrix.new_zeros(rows, rows)
    width = max(LEAST, math.ceil(rows / BLOCKS))
    for start in range(0, rows, width):
        stop = min(start + width, rows)
        torch.mm(matrix[start:stop], matrix[:stop].T, out=gram[start:stop, :stop])
    return gram
