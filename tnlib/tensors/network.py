"""Convolution and average pooling as contractions of the patch tensor (Figure 2)."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .checks import check_count, check_image, check_kernel, pair


@dataclass(frozen=True)
class Geometry:
    """How a kernel steps over an image: pairs (vertical, horizontal); `.padding` may also be "same" or "valid"."""

    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]

    @classmethod
    def of(cls, stride, padding, dilation) -> "Geometry":
        """A geometry of numbers or pairs. Raises `ValueError` naming the argument that is none."""
        stride, dilation = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
        if not isinstance(padding, str) or padding not in ("same", "valid"):
            padding = pair(padding, "padding", 0, " (or 'same' or 'valid')")
        if padding == "same" and stride != (1, 1):
            raise ValueError(f"padding 'same' takes stride 1, got stride {stride}")
        return cls(stride, padding, dilation)

    def pads(self, kernel_size) -> tuple[tuple[int, int], tuple[int, int]]:
        """Zeros before and after the image: ((top, bottom), (left, right))."""
        if self.padding == "valid":
            return (0, 0), (0, 0)
        if self.padding == "same":  # the odd zero of an even kernel comes after, as in torch
            totals = [d * (k - 1) for d, k in zip(self.dilation, kernel_size)]
            return tuple((total // 2, total - total // 2) for total in totals)
        return tuple((p, p) for p in self.padding)

    def output_size(self, image_size, kernel_size) -> tuple[int, int]:
        """(H', W') of an image (H, W) and a kernel (KH, KW). Raises `ValueError` for a kernel that does not fit."""
        padded = [n + sum(pads) for n, pads in zip(image_size, self.pads(kernel_size))]
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, kernel_size)]
        if any(span > n for span, n in zip(spans, padded)):
            raise ValueError(f"the kernel's size {tuple(kernel_size)} must fit into the padded image, but at dilation "
                             f"{self.dilation} it spans {tuple(spans)}, and an image {tuple(image_size)} with padding "
                             f"{self.padding!r} has {tuple(padded)}")
        return tuple((n - span) // s + 1 for n, span, s in zip(padded, spans, self.stride))

    def along(self, modes) -> "Geometry":
        """The part of this geometry for a factor that has only some of the modes KH and KW: 1, 0, 1 along the other."""
        here = ["KH" in modes, "KW" in modes]
        keep = lambda values, neutral: tuple(v if h else neutral for v, h in zip(values, here))
        padding = self.padding if isinstance(self.padding, str) else keep(self.padding, 0)
        return Geometry(keep(self.stride, 1), padding, keep(self.dilation, 1))


def patches(image: torch.Tensor, kernel_size, stride=1, padding=0, dilation=1) -> torch.Tensor:
    """The patch tensor of an image: (N, C, H, W) → (N, C, KH, KW, H', W'), a view of the padded image.

    patch[n, c, i, j, y, x] = image[n, c, stride·y + dilation·i − padding, stride·x + dilation·j − padding], and zero
    outside. `kernel_size`, `stride`, `dilation`: a number or a pair (vertical, horizontal); `padding` also "same" or
    "valid". Raises `TypeError` or `ValueError` for anything but a floating image that the kernel fits into.
    Source: Figure 2 (im2col).
    """
    check_image(image)
    kernel_size, geometry = pair(kernel_size, "kernel_size", 1), Geometry.of(stride, padding, dilation)
    geometry.output_size(image.shape[2:], kernel_size)
    vertical, horizontal = geometry.pads(kernel_size)
    windows = F.pad(image, horizontal + vertical)                           # [N, C, H + pads, W + pads]
    for axis, k, s, d in zip((2, 3), kernel_size, geometry.stride, geometry.dilation):
        windows = windows.unfold(axis, d * (k - 1) + 1, s)[..., ::d]
    return windows.permute(0, 1, 4, 5, 2, 3)                                # from [N, C, H', W', KH, KW]


def conv2d(image: torch.Tensor, kernel: torch.Tensor, stride=1, padding=0, dilation=1, groups=1) -> torch.Tensor:
    """Convolution as the contraction of patch tensor and kernel: (N, C, H, W), (OUT, IN, KH, KW) → (N, OUT, H', W').

    Equal to `torch.nn.functional.conv2d`: C = groups·IN, and block g of the OUT filters sees block g of the channels.
    `stride`, `padding`, `dilation` as in `patches`. Raises `TypeError` or `ValueError` for an image that does not fit
    the kernel, and for groups that do not divide OUT and C. Source: Figure 2.
    """
    check_kernel(kernel)
    check_image(image, beside=kernel)
    groups = check_count(groups, "groups")
    if kernel.shape[0] % groups or image.shape[1] % groups:
        raise ValueError(f"groups must divide OUT of the kernel {tuple(kernel.shape)} and C of the image "
                         f"{tuple(image.shape)}, got {groups}")
    check_image(image, groups * kernel.shape[1])
    patch = patches(image, kernel.shape[2:], stride, padding, dilation)     # [N, C, KH, KW, H', W']
    patch = patch.unflatten(1, (groups, -1))                                # [N, G, IN, KH, KW, H', W']
    kernel = kernel.unflatten(0, (groups, -1))                              # [G, OUT/G, IN, KH, KW]
    return torch.einsum("ngcijyx,gocij->ngoyx", patch, kernel).flatten(1, 2)


def avg_pool2d(image: torch.Tensor, kernel_size, stride=None) -> torch.Tensor:
    """Average pooling as a contraction of the patch tensor with two vectors: (N, C, H, W) → (N, C, H', W').

    One vector of ones (KH,) and one of constants α = 1/(KH·KW) (KW,). Equal to `torch.nn.functional.avg_pool2d`;
    `stride` none: the kernel's size. Raises as `patches` does. Source: Figure 2.
    """
    height, width = pair(kernel_size, "kernel_size", 1)
    patch = patches(image, (height, width), (height, width) if stride is None else stride)
    ones, alpha = image.new_ones(height), image.new_full((width,), 1 / (height * width))
    return torch.einsum("ncijyx,i,j->ncyx", patch, ones, alpha)


def multiply_adds(kernel: torch.Tensor, image_size, stride=1, padding=0, dilation=1) -> int:
    """Multiplications of the dense convolution of one image (H, W): OUT·IN·KH·KW·H'·W', padding zeros counted.

    Half of what `torch.utils.flop_counter` counts; with groups, IN is that of one group. Raises as `patches` does.
    """
    check_kernel(kernel)
    size, geometry = pair(image_size, "image_size", 1), Geometry.of(stride, padding, dilation)
    height, width = geometry.output_size(size, kernel.shape[2:])
    return kernel.numel() * height * width
