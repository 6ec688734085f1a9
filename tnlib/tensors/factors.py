"""A kernel as a network of small factors: what all factorisations share, above all their convolution.

A factorised kernel is a sequence of steps, each an ordinary convolution with one factor. Convolving an image and
counting the multiplications of that read the same steps, so the count is of what is done.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .checks import check_image, pair
from .network import Geometry, multiply_adds


@dataclass(frozen=True)
class Step:
    """A convolution with one factor. `.weight`: (out, in / groups, KH or 1, KW or 1).

    `.modes`: which of KH and KW lie in the factor; stride, padding and dilation go with them. `.copies`: the channels
    are so many equal blocks, each of which goes through the same weight. `.swap`: the channels that come out are an
    array (a, b) and leave as (b, a), a = groups.
    """

    weight: torch.Tensor
    modes: tuple[str, ...] = ()
    groups: int = 1
    copies: int = 1
    swap: bool = False

    def __call__(self, image: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        """(N, copies·in, H, W) → (N, copies·out, H', W')."""
        here = geometry.along(self.modes)
        blocks = image.unflatten(1, (self.copies, -1)).flatten(0, 1)              # [N·copies, in, H, W]
        blocks = F.conv2d(blocks, self.weight, None, here.stride, here.padding, here.dilation, self.groups)
        if self.swap:
            blocks = blocks.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        return blocks.unflatten(0, (len(image), self.copies)).flatten(1, 2)

    def multiply_adds(self, image_size, geometry: Geometry) -> tuple[int, tuple[int, int]]:
        """The multiplications of this step on an image (H, W), and the size (H', W') of what comes out."""
        here = geometry.along(self.modes)
        count = multiply_adds(self.weight, image_size, here.stride, here.padding, here.dilation)
        return self.copies * count, here.output_size(image_size, self.weight.shape[2:])


@dataclass(frozen=True)
class KernelFactors:
    """A kernel of `.shape` (OUT, IN, KH, KW) as `.factors`, a tuple of tensors of the kernel's dtype and device."""

    shape: tuple[int, int, int, int]
    factors: tuple[torch.Tensor, ...]

    def to_kernel(self) -> torch.Tensor:
        """The dense kernel (OUT, IN, KH, KW)."""
        raise NotImplementedError

    def steps(self) -> list[Step]:
        """The factors as convolutions, in the order in which an image goes through them."""
        raise NotImplementedError

    @property
    def num_parameters(self) -> int:
        """The number of entries of all factors."""
        return sum(factor.numel() for factor in self.factors)

    def conv2d(self, image: torch.Tensor, stride=1, padding=0, dilation=1) -> torch.Tensor:
        """Convolve (N, IN, H, W) → (N, OUT, H', W') factor by factor; the dense kernel is never formed.

        Equal to `torch.nn.functional.conv2d` with `.to_kernel()`. `stride`, `padding`, `dilation`: a number or a pair,
        `padding` also "same" or "valid". Raises `TypeError` or `ValueError` for anything but an image of the kernel's
        channels, dtype and device that the kernel fits into.
        """
        check_image(image, self.shape[1], self.factors[0])
        geometry = Geometry.of(stride, padding, dilation)
        geometry.output_size(image.shape[2:], self.shape[2:])
        for step in self.steps():
            image = step(image, geometry)
        return image

    def multiply_adds(self, image_size, stride=1, padding=0, dilation=1) -> int:
        """Multiplications of `.conv2d` for one image (H, W), those with padding's zeros counted.

        `network.multiply_adds` counts the dense kernel's. Raises as `.conv2d` does.
        """
        size, geometry = pair(image_size, "image_size", 1), Geometry.of(stride, padding, dilation)
        geometry.output_size(size, self.shape[2:])
        total = 0
        for step in self.steps():
            count, size = step.multiply_adds(size, geometry)
            total += count
        return total


def cast_like(kernel: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors with the kernel's dtype and device. Raises `ValueError` where one has numbers beyond that dtype."""
    cast = tuple(tensor.to(kernel).contiguous() for tensor in tensors)
    if not all(tensor.isfinite().all() for tensor in cast):
        raise ValueError(f"a factor of the kernel of shape {tuple(kernel.shape)} has numbers beyond what {kernel.dtype} can hold: take kernel.float()"
                         + " or divide it by its norm" * (kernel.dtype.itemsize > 2))
    return cast
