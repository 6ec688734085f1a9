"""Small networks of every kind that a sweep must take, and the plain way to do what it does."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tnlib import Dataset, conv_kernels, evaluate, load_model, sweep
from tnlib.experiments.replacements import dense
from tnlib.experiments.torchvision_compat import import_torchvision


class Grouped(nn.Module):
    """Groups, depthwise, stride, dilation, a bias before batch norm, ReLU6, "same" and reflected padding."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.groups = nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=4, bias=False)
        self.norm2 = nn.BatchNorm2d(16, affine=False)
        self.depthwise = nn.Conv2d(16, 16, 3, padding="same", groups=16)
        self.reflected = nn.Conv2d(16, 8, 3, padding=1, padding_mode="reflect")
        self.head = nn.Linear(8, 10)

    def forward(self, image):
        x = F.relu6(self.norm(self.first(image)))
        x = self.norm2(self.groups(x)).relu()
        x = self.reflected(F.dropout(self.depthwise(x), 0.5, self.training))
        return self.head(x.mean((2, 3)))


class Branches(nn.Module):
    """Concatenated branches, residuals, in-place operations on values that are used again, a layer used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.narrow = nn.Conv2d(16, 1, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 10)

    def forward(self, image):
        x = self.stem(image)
        activated = self.relu(x)                     # x is written to, and used again below
        y = torch.cat([self.left(activated), self.right(x)], 1)
        y += self.twice(y)
        y = F.max_pool2d(F.relu(y, True), 2)
        y = F.relu(y + self.twice(y).mul_(0.5))
        y = y + self.narrow(y)                       # one channel is added to all
        return self.head(y.mean((2, 3)))


class Misnamed(nn.Module):
    """Modules under the names of what they are not, one of them with a hook; and a head that eval mode never calls."""

    def __init__(self):
        super().__init__()
        self.add, self.skip = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.last, self.masked = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.SiLU()
        self.relu.register_forward_hook(lambda module, arguments, output: output.clamp(max=0.5))
        self.head, self.auxiliary = nn.Linear(8, 10), nn.Conv2d(8, 10, 1)

    def forward(self, image):
        x = self.relu(self.add(image) + self.skip(image))
        if self.training:
            x = x + self.auxiliary(x).mean()
        x = F.relu6(self.last(x) + x)                # another activation than ReLU after an addition
        x = F.relu(self.masked(x) + (x > 0.2))       # and an addition of another dtype
        return self.head(x.mean((2, 3)))


class Written(nn.Module):
    """A part of a tensor is written to, which cannot be told apart from the value before: no graph."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, image):
        x = self.conv(image)
        x[:, :2] = 0.5 * x[:, :2]
        return self.head(x.mean((2, 3)))


class Choosing(Written):
    """Decides by the values of its image."""

    def forward(self, image):
        x = self.conv(image)
        return self.head(x.amax((2, 3)) if image.mean() > 0 else x.mean((2, 3)))


def torchvision_model(name):
    return import_torchvision().models.get_model(name, num_classes=10)


MODELS = {
    "vanilla": lambda: load_model("vanilla", "shapes"),
    "resnet18": lambda: torchvision_model("resnet18"),
    "mobilenet_v2": lambda: torchvision_model("mobilenet_v2"),
    "grouped": Grouped,
    "branches": Branches,
    "misnamed": Misnamed,
}
SEEN = {}  # every model is made once


def model_and_data(name):
    """A model in eval mode that answers differently for different images, and images with its own answers as labels: two batches
    of a sweep, or one of the largest model."""
    images = 100 if name == "resnet18" else 200
    if name not in SEEN:
        torch.manual_seed(0)
        model = (MODELS | {"written": Written, "choosing": Choosing})[name]()
        pixels = np.random.RandomState(1).randint(0, 256, (images, 32, 32, 3)).astype(np.uint8)
        pixels[:, ::2] //= np.arange(1, images + 1, dtype=np.uint8)[:, None, None, None]  # not all the same grey
        batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over batches: statistics of these images after one
        with torch.no_grad():
            model.train()(batch) if name != "vanilla" else None
            logits = model.eval()(batch)
            head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
            head.bias -= logits.mean(0)  # no class is far ahead
            labels = model(batch).argmax(1).numpy()
        SEEN[name] = model, Dataset(pixels, labels)
    return SEEN[name]


def noisy(kernel, size=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return kernel + size * kernel.std() * torch.randn(kernel.shape, generator=generator)


def swapped(model, dataset, kernels):
    """The plain way: the weights of a copy replaced, and the whole network run."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for layer, kernel in kernels.items():
            copied.get_submodule(layer).weight.copy_(dense(kernel))
    return evaluate(copied, dataset)


def run(model, dataset, replacements, *arguments, **options):
    return list(sweep(model, dataset, replacements, *arguments, progress=False, **options))


def cells_of(model, most=6):
    """The baseline, some layers alone twice each, and the first three at once."""
    kernels = conv_kernels(model)
    chosen = list(kernels)[::max(1, len(kernels) // most)]
    cells = [({"cell": "untruncated"}, {})]
    cells += [({"cell": layer, "size": size}, {layer: noisy(kernels[layer], size)})
              for layer in chosen for size in (0.5, 1.5)]
    return cells + [({"cell": "three"}, {layer: noisy(kernels[layer]) for layer in chosen[:3]})]


def vanilla_cells(count=5):
    model, dataset = model_and_data("vanilla")
    kernel = conv_kernels(model)["conv3"]
    return model, dataset, [({"k": k}, {"conv3": noisy(kernel, seed=k)}) for k in range(count)]
