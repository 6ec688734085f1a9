"""3×3 convolutions by minimal filtering, F(m×m, 3×3) of Lavin and Gray (arXiv 1509.09308): fewer multiplications.

An m×m tile of the output is A((G k Gᵀ) ⊙ (B d Bᵀ))Aᵀ, for a kernel k and the (m+2)×(m+2) values d of the input under it.
Summed over IN, ⊙ is one matrix product for each of the (m+2)² entries: 16/36 of a convolution's multiplications with
m = 2, 36/144 with m = 4. The two transformations of the values come on top, and are worth it where there are many
channels and few positions.
"""

import math

import numpy as np
import torch

# The points at which Cook and Toom's polynomials are taken, besides infinity. For m = 4 the article has 2 in place of
# 1/2: the error is then twice as large. Against float64, in units of the largest output of 64 → 128 channels: oneDNN
# 7e-7; m = 2 3e-7; m = 4 2e-6, with the article's points 5e-6.
POINTS = {2: (0, 1, -1), 4: (0, 1, -1, 1 / 2, -2)}
# Measured with AVX-512 against oneDNN's convolution: 1.3 times as fast from 64 → 128 channels at 8×8 on, 2.4 times with
# 128 → 256 at 4×4, 4 times with 512 → 512 at 2×2; no faster with 32 → 64, or at 16×16. With AVX2 alone 0.8, 1.3 and 1.5 times.
# Of a whole sweep that is little: of a ResNet-50 at 32×32, whose other layers are computed all the same, 1.09 to 1.15 times
# as fast with AVX2, of the vanilla network 0.98 to 1.13 times, and with matrix tiles (AMX) 0.99 to 1.05.
MOST_POSITIONS, LEAST_CHANNELS = 64, 80  # channels: the harmonic mean of IN and OUT
TILES = 64  # at once, so that what is computed on the way stays in the caches


def transforms(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (m, m+2), G (m+2, 3), B (m+2, m+2): A((G k) ⊙ (B d)) is the valid correlation of d, m+2 numbers, with k, three."""
    points, n = np.array(POINTS[m]), m + 2
    powers = lambda count: points[:, None] ** np.arange(count)                       # [n−1, count]
    infinity = lambda count: np.eye(count)[[-1]]
    others = [np.delete(points, i) for i in range(n - 1)]
    scale = np.array([[np.prod(point - rest)] for point, rest in zip(points, others)])
    A = np.concatenate([powers(m), infinity(m)]).T
    G = np.concatenate([powers(3) / scale, infinity(3)])
    B = np.array([*(np.append(np.poly(rest)[::-1], 0) for rest in others), np.poly(points)[::-1]])
    return A, G, B


def tile_side(kernel_shape, height: int, width: int) -> int | None:
    """The m to take for a kernel (OUT, IN, 3, 3) on images of height × width; None where this is not faster."""
    rows, columns = kernel_shape[:2]
    if height * width > MOST_POSITIONS or 2 * rows * columns < LEAST_CHANNELS * (rows + columns):
        return None
    return next((m for m in (4, 2) if height % m == width % m == 0), None)


class Scratch:
    """Memory that is asked for by name, again and again: getting it anew from the system takes longer than using it."""

    def __init__(self):
        self._held = {}

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        """A float32 tensor of `shape` with any values; what was asked for under `name` before is lost."""
        size = math.prod(shape)
        if name not in self._held or len(self._held[name]) < size:
            self._held[name] = torch.empty(size, dtype=torch.float32)
        return self._held[name][:size].view(shape)


class Winograd:
    """Convolves with `kernel` (OUT, IN, 3, 3), float32: stride 1, one zero around the image. `m`: the side of a tile."""

    def __init__(self, kernel: torch.Tensor, m: int, scratch: Scratch):
        A, G, B = (torch.from_numpy(np.kron(matrix, matrix)) for matrix in transforms(m))
        rows, columns = kernel.shape[:2]
        self.m, self.scratch = m, scratch
        self.A, self.B = A.float(), B.float()                                        # [m², n²], [n², n²], n = m + 2
        self.kernel = (G @ kernel.permute(2, 3, 1, 0).reshape(9, -1).double()).float().view(-1, columns, rows)

    def __call__(self, image: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """(N, IN, H, W), H and W multiples of m → conv(image, kernel) + bias (N, OUT, H, W); both in channels_last."""
        count, _, height, width = image.shape
        output = torch.empty(count, len(bias), height, width, dtype=torch.float32, memory_format=torch.channels_last)
        at_once = max(1, TILES * self.m ** 2 // (height * width))
        for some, result in zip(image.split(at_once), output.split(at_once)):
            self._convolve(some.permute(0, 2, 3, 1), bias, result.permute(0, 2, 3, 1))
        return output

    def _convolve(self, image, bias, output):
        """[N, H, W, IN] into [N, H, W, OUT]."""
        m, n, scratch = self.m, self.m + 2, self.scratch
        count, height, width, columns = image.shape
        down, across, rows = height // m, width // m, len(bias)
        tiles = count * down * across
        padded = scratch("padded", count, height + 2, width + 2, columns).zero_()
        padded[:, 1:-1, 1:-1].copy_(image)
        under = scratch("under", n, n, count, down, across, columns)
        under.copy_(padded.unfold(1, n, m).unfold(2, n, m).permute(4, 5, 0, 1, 2, 3))
        values = torch.mm(self.B, under.view(n * n, -1), out=scratch("values", n * n, tiles * columns))
        products = torch.bmm(values.view(n * n, tiles, columns), self.kernel, out=scratch("products", n * n, tiles, rows))
        result = torch.mm(self.A, products.view(n * n, -1), out=scratch("result", m * m, tiles * rows))
        placed = output.unflatten(1, (down, m)).unflatten(3, (across, m)).permute(2, 4, 0, 1, 3, 5)
        torch.add(result.view(m, m, count, down, across, rows), bias, out=placed)
