"""The networks, and what is read off any network: its convolutions' kernels."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.nn import functional as F

from ..tensors.checks import check_count


class Normalize(nn.Module):
    """(image − mean) / std by channel; the two are buffers, so that a network's weights say how it sees an image."""

    def __init__(self, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, image):
        return (image - self.mean) / self.std


class Vanilla(nn.Module):
    """Four blocks of 3×3 convolution, ReLU and 2×2 average pooling, then two linear layers: N = 4, M = 2 in Figure 1.

    Takes (N, 3, S, S) floats in [0, 1] and returns (N, classes) logits; S is `image_size`, divisible by 16. No batch
    norm, so that a kernel's norm is not hidden behind a scale that follows it.
    """

    def __init__(self, classes: int, channels=(32, 64, 128, 256), hidden: int = 256, image_size: int = 32):
        super().__init__()
        if len(channels) != 4 or image_size % 16:
            raise ValueError(f"Vanilla takes four channel counts and an image size divisible by 16, "
                             f"got channels={tuple(channels)}, image_size={image_size}")
        self.normalize = Normalize()
        widths = (3, *channels)
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Conv2d(width_in, width_out, 3, padding=1) for width_in, width_out in zip(widths, widths[1:]))
        self.linear1 = nn.Linear(channels[-1] * (image_size // 16) ** 2, hidden)
        self.linear2 = nn.Linear(hidden, classes)
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4, self.linear1, self.linear2):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, image):
        x = self.normalize(image)                                                  # [N, 3, 32, 32]
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.avg_pool2d(F.relu(conv(x)), 2)                                   # [N, C, 16, 16] … [N, C, 2, 2]
        x = F.relu(self.linear1(x.flatten(1)))
        return self.linear2(x)


def _resnet50(**arguments) -> nn.Module:
    from .resnet import ResNet50  # torchvision takes a second to import: only where it is needed
    return ResNet50(**arguments)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum, one triangle of the learning rate, light augmentation.

    `.sides`: to which sides images are shrunk, each for an equal share of the epochs, where the last stands for their own
    side: (24, 32) is three quarters of it, then all of it. (): they stay as they are.
    `.bfloat16`: whether a CPU with matrix tiles (AMX) trains in bfloat16 autocast; see `training.bfloat16_pays`.
    """

    epochs: int = 24
    batch_size: int = 128
    peak_lr: float = 0.12
    warmup: float = 0.2  # the share of the steps in which the learning rate rises
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.05
    clip_norm: float = 5.0
    crop_padding: int = 4
    flip: bool = True
    sides: tuple[int, ...] = ()
    bfloat16: bool = True

    def __post_init__(self):
        for name, least in (("epochs", 1), ("batch_size", 1), ("crop_padding", 0)):
            check_count(getattr(self, name), name, least)
        for name, or_zero, most in (("peak_lr", False, math.inf), ("clip_norm", False, math.inf), ("weight_decay", True, math.inf),
                                    ("warmup", True, 1), ("momentum", False, 1), ("label_smoothing", True, 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not (0 < value <= most or or_zero and value == 0):
                raise ValueError(f"{name} must be a number {'of at least' if or_zero else 'above'} 0" + " and at most 1" * (most == 1) + f", got {value!r}")
        if not isinstance(self.sides, (tuple, list)):
            raise TypeError(f"sides must be a tuple of whole numbers, got {self.sides!r}")
        for side in self.sides:
            check_count(side, "a side")

    def side(self, epoch: int, own: int) -> int:
        """The side that images of side `own` have in an epoch, counted from 0."""
        if not self.sides:
            return own
        return round(own * self.sides[epoch * len(self.sides) // self.epochs] / self.sides[-1])


@dataclass(frozen=True)
class Network:
    """A published architecture by its name: what builds it, with which arguments, and its recipe.

    `.smaller`: the name of a data set, or "cpu" for where there is no GPU → (arguments, recipe) in their place, for
    what would take days there. `.images`: how many of the training images it is trained on, class-balanced (None: all);
    `.shuffled`: whether their labels are shuffled, so that there is nothing to learn but the images one by one.
    `.half`: whether kernels are kept as float16, because the file would be too large otherwise.
    """

    build: Callable[..., nn.Module]
    arguments: dict = field(default_factory=dict)
    recipe: Recipe = Recipe()
    smaller: dict = field(default_factory=dict)
    images: int | None = None
    shuffled: bool = False
    half: bool = False

    def trained_with(self, dataset: str, device: str) -> tuple[dict, Recipe]:
        """Arguments and recipe on the data set called `dataset`, on a device of the type `device`."""
        arguments, recipe = (dataset != "cpu" and self.smaller.get(dataset)) or self.smaller.get(device) or ({}, self.recipe)
        return self.arguments | arguments, recipe

    def without_decay(self) -> "Network":
        """The same network, trained without weight decay wherever it is: a control for what looks like an effect of training itself."""
        smaller = {where: (arguments, replace(recipe, weight_decay=0.0)) for where, (arguments, recipe) in self.smaller.items()}
        return replace(self, recipe=replace(self.recipe, weight_decay=0.0), smaller=smaller)


# In float32 on a CPU with matrix tiles, too, as the published cards have it. It is not for speed: on a Xeon with two threads a step in bfloat16 is
# 1.5 (stem s2, 128 images) to 2.2 times (s1, 256 images) as fast.
RESNET = Recipe(epochs=50, batch_size=256, peak_lr=0.2, label_smoothing=0.1, bfloat16=False)
# To fit every image: neither decay nor augmentation nor smoothing.
MEMORISING = Recipe(epochs=80, peak_lr=0.05, weight_decay=0.0, label_smoothing=0.0, crop_padding=0, flip=False)

NETWORKS = {
    # On shapes, six epochs of small batches are enough, and take half a minute on two cores.
    "vanilla": Network(Vanilla, {"channels": (32, 64, 128, 256)},
                       smaller={"shapes": ({}, Recipe(epochs=6, batch_size=64, peak_lr=0.05, crop_padding=2))}),
    # The same network with width that does not grow with depth: controls for what looks like an effect of depth.
    "vanilla-constant": Network(Vanilla, {"channels": (96, 96, 96, 96)}),
    "vanilla-reversed": Network(Vanilla, {"channels": (128, 96, 64, 32)}),
    # Twins: one learns by heart what the other can also understand.
    "vanilla-true-labels": Network(Vanilla, {"channels": (32, 64, 128, 256)}, MEMORISING, images=10_000),
    "vanilla-shuffled-labels": Network(Vanilla, {"channels": (32, 64, 128, 256)}, MEMORISING, images=10_000,
                                       shuffled=True),
    # 50 epochs are minutes on a GPU, and on two cores of a CPU two days: there it is another network, trained for less.
    # In so few steps a kernel leaves the noise that it began as only at a higher decay: of where it began,
    # exp(−Σ rate · decay / (1 − momentum)) is left, 3 % at this decay and 17 % at the GPU's. At a rate of 0.5 and a decay of
    # 2e-3, 38 % of CIFAR-10's held-out images were right after seven epochs of ten: too high.
    "resnet50": Network(_resnet50, {"stem": "s1"}, RESNET, half=True, smaller={
        "cpu": ({"stem": "s2"}, replace(RESNET, epochs=10, batch_size=128, weight_decay=1e-3, sides=(24, 24, 24, 24, 32))),
        "shapes": ({"stem": "s2", "blocks": (1, 1, 1, 1), "width": 16},
                   replace(RESNET, epochs=4, batch_size=64, peak_lr=0.05, crop_padding=2))}),
}
NETWORKS |= {f"{name}-no-decay": NETWORKS[name].without_decay() for name in ("vanilla", "resnet50")}


def network(name: str) -> Network:
    """The entry of `NETWORKS`; `ValueError` names what there is."""
    if not isinstance(name, str) or name not in NETWORKS:
        got = repr(name) if isinstance(name, str) else f"of type {type(name).__name__}"
        raise ValueError(f"unknown network {got}: it takes {', '.join(map(repr, NETWORKS))}")
    return NETWORKS[name]


def conv_kernels(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name → kernel (OUT, IN/groups, KH, KW), detached, of every `Conv2d`, in the order in which they are defined.

    They are the model's own memory: who writes into one changes the model, and takes a `.clone()` first. For the networks of
    this project the order is that of the forward pass. Raises `TypeError` for anything but a module, and for
    TorchScript, and `ValueError` for a module without `Conv2d` layers, or with lazy ones that have seen no image.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is TorchScript, in which no kernel can be replaced: give the torch.nn.Module that it was made of")
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"the model's {name} has no shape yet: run the model once on a batch of images")
    kernels = {name: module.weight.detach() for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not kernels:
        raise ValueError(f"{type(model).__name__} has no Conv2d layers")
    return kernels
