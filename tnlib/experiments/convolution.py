"""A convolution with what follows it as one operation, in the layout that measures fastest."""

import torch
from torch import nn
from torch.nn import functional as F

from ..tensors.checks import pair
from ..tensors.network import Geometry, patches
from .winograd import Scratch, Winograd, tile_side

# activation → its name and numbers in oneDNN, which applies it while a convolution's output is still in the cache
ACTIVATIONS = {nn.ReLU: ("relu", ()), F.relu: ("relu", ()), torch.relu: ("relu", ()), "relu": ("relu", ()),
               nn.ReLU6: ("hardtanh", (0.0, 6.0)), F.relu6: ("hardtanh", (0.0, 6.0))}
APPLY = {"none": lambda x: x, "relu": torch.relu_, "hardtanh": F.hardtanh_}
# oneDNN reads a channels_last image by rows, and so a large weight anew for every few positions of a small map: there
# its own layout is faster. Measured with AVX-512: from 3×3×256×256 at 4×4 on (1.3 times; 3.5 times at 2×2).
SMALL_MAP, LARGE_WEIGHT = 16, 2**19


def convolve(image, weight, bias, padding, stride, dilation, groups) -> torch.Tensor:
    """A convolution of images with a weight in channels_last, where oneDNN does not do it: (N, OUT, H', W').

    In float32 proper, without TF32, cuDNN has slow ways alone for a 1×1 kernel and for small maps: there it is one product
    of matrices. (Measured on an NVIDIA H100: 15 TFLOP/s at 1×1×64×256, 11 at 3×3×512×512 on 4×4.)
    """
    height, width = Geometry(stride, padding, dilation).output_size(image.shape[2:], weight.shape[2:])
    pointwise = weight.shape[2:].numel() == 1 and not any(padding)
    if groups > 1 or not (pointwise or height * width <= SMALL_MAP):
        return F.conv2d(image, weight, bias, stride, padding, dilation, groups)
    if pointwise:
        rows = image[:, :, ::stride[0], ::stride[1]].permute(0, 2, 3, 1)                     # [N, H', W', IN]
    else:
        rows = patches(image, tuple(weight.shape[2:]), stride, padding, dilation).permute(0, 4, 5, 2, 3, 1)
    rows = rows.reshape(len(image) * height * width, -1)                                     # [N·H'·W', KH·KW·IN]
    columns = weight.permute(0, 2, 3, 1).flatten(1).T                                        # [KH·KW·IN, OUT]
    output = rows @ columns if bias is None else torch.addmm(bias, rows, columns)
    return output.view(len(image), height, width, -1).permute(0, 3, 1, 2)                    # [N, OUT, H', W']


class Convolution(nn.Module):
    """activation(batch norm(conv(image, kernel)) + other) as one operation; `put` replaces the kernel.

    The batch norm's scale is multiplied onto the OUT rows of whatever kernel is put in. On a CPU the weight is kept in
    oneDNN's blocked layout or as `Winograd` takes it, elsewhere in channels_last. `scratch`: for all convolutions of a
    network, which run one after another.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, activation=("none", ()),
                 scratch: Scratch | None = None):
        super().__init__()
        self.geometry = pair(conv.padding, "padding"), pair(conv.stride, "stride", 1), pair(conv.dilation, "dilation", 1), conv.groups
        self.scratch = scratch or Scratch()
        self.activation, self.numbers = activation
        kernel, bias = conv.weight.detach(), conv.bias
        scale, shift = kernel.new_ones(len(kernel)).double(), kernel.new_zeros(len(kernel)).double()
        if bias is not None:
            shift = bias.detach().double()
        if norm is not None:
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            scale = scale * norm.weight.detach().double() if norm.affine else scale
            shift = (shift - norm.running_mean.double()) * scale
            shift = shift + norm.bias.detach().double() if norm.affine else shift
        self.scale, self.bias = scale, shift.to(kernel.dtype)
        self.kernel = kernel
        self.blocked = kernel.device.type == "cpu" and kernel.dtype == torch.float32 and \
            torch.backends.mkldnn.is_available()
        self.pointwise = kernel.shape[2:].numel() == 1 and conv.groups == 1 and not any(self.geometry[0])
        self.plain_3x3 = kernel.shape[2:] == (3, 3) and self.geometry == ((1, 1), (1, 1), (1, 1), 1)
        self.put(kernel)

    def put(self, kernel: torch.Tensor | None) -> None:
        """Convolve with `kernel` (OUT, IN/groups, KH, KW) from now on; None: with the layer's own."""
        kernel = self.kernel if kernel is None else kernel.to(self.kernel.device)
        weight = (kernel.double() * self.scale.view(-1, 1, 1, 1)).to(kernel.dtype)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.winograd = None  # of this weight, when images come that it suits
        self.growing = None  # what gives the output in place of this weight: see `growing.Growing`

    def forward(self, image, other=None):
        """(N, IN, H, W), and (N, OUT, H', W') to be added before the activation → (N, OUT, H', W')."""
        image = image.contiguous(memory_format=torch.channels_last)
        if self.growing is not None:
            return self.growing(image, other)
        if not self.blocked:
            output = convolve(image, self.weight, self.bias, *self.geometry)
            return APPLY[self.activation](output if other is None else output.add_(other), *self.numbers)
        if self.pointwise:
            return self._rows(image[:, :, ::self.geometry[1][0], ::self.geometry[1][1]], other)
        if self.plain_3x3 and (m := tile_side(self.kernel.shape, *image.shape[2:])):
            if self.winograd is None or self.winograd.m != m:
                self.winograd = Winograd(self.weight, m, self.scratch)
            output = self.winograd(image, self.bias)
            return APPLY[self.activation](output if other is None else output.add_(other), *self.numbers)
        if image[0, 0].numel() <= SMALL_MAP and self.kernel.numel() > LARGE_WEIGHT:
            return self._onednn(image.contiguous(), self.weight.contiguous(), self.geometry, other)
        return self._reordered(image, self.geometry, other)

    def _rows(self, image, other):
        """A 1×1 convolution: all positions of all images as one row of one image, which is one matrix product."""
        n, _, height, width = image.shape
        row = lambda x: x.permute(0, 2, 3, 1).reshape(1, 1, n * height * width, -1).permute(0, 3, 1, 2)
        output = self._reordered(row(image), ([0, 0], [1, 1], [1, 1], 1),                    # [1, C, 1, N·H·W] each
                                 None if other is None else row(other))
        return output.permute(0, 2, 3, 1).reshape(n, height, width, -1).permute(0, 3, 1, 2)  # [N, OUT, H, W]

    def _reordered(self, image, geometry, other):
        if not self.weight.is_mkldnn:  # how it is blocked depends on the image's size
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *geometry, list(image.shape))
        return self._onednn(image, self.weight, geometry, other)

    def _onednn(self, image, weight, geometry, other):
        convolve, numbers = torch.ops.mkldnn._convolution_pointwise, list(self.numbers)
        if other is None:
            return convolve(image, weight, self.bias, *geometry, self.activation, numbers, "")
        other = other.contiguous(memory_format=torch.channels_last if weight.is_mkldnn else torch.contiguous_format)
        activation = "relu" if self.activation == "relu" else None  # after an addition it has no other
        output = convolve.binary(image, other, weight, self.bias, *geometry, "add", 1.0, activation, [], "")
        return output if activation else APPLY[self.activation](output, *numbers)
