"""Networks of many layers on a page: an axis along depth that can be read, layers chosen for panels of their own, and
what else than depth tells them apart."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import pandas as pd
import torch

MANY = 8  # of so many layers each has its name on an axis and its panel; of more, only some have


def depth_axis(ax, layers: Sequence[str], axis: str = "x") -> None:
    """Tick an axis of `ax`, "x" or "y", where the k-th of `layers` lies at k, from 1: their names or, of more than 8,
    their stages.

    A stage is what names have in common before their first dot: "layer3.0.conv2" is of the stage "layer3". Its name
    stands at its middle, and a line before its first layer.
    """
    ticks, limits, line = {"x": (ax.set_xticks, ax.set_xlim, ax.axvline), "y": (ax.set_yticks, ax.set_ylim, ax.axhline)}[axis]
    if len(layers) <= MANY:
        ticks(range(1, len(layers) + 1), layers)
        return
    middles, names, first = [], [], 1
    for name, members in groupby(layers, key=stage):
        last = first + len(list(members)) - 1
        if first > 1:
            line(first - 0.5, color="black", lw=0.5, zorder=2 if axis == "y" else 0)
        middles.append((first + last) / 2)
        names.append(name)
        first = last + 1
    ticks(middles, names)
    ax.tick_params(axis=axis, length=0)
    limits(*((0.5, len(layers) + 0.5) if axis == "x" else (len(layers) + 0.5, 0.5)))
    ax.grid(False, axis=axis)


def panel_layers(kernels: Mapping[str, torch.Tensor]) -> list[str]:
    """The layers that have panels of their own: all or, of more than 8, the first, the first kernel of each stage that is
    larger than 1×1, and the last such kernel.

    `kernels`: name → (OUT, IN, KH, KW), in forward order.
    """
    layers = list(kernels)
    if len(layers) <= MANY:
        return layers
    spatial = [name for name in layers if kernels[name].shape[2:].numel() > 1]
    firsts = [next(members) for _, members in groupby(spatial, key=stage)]
    chosen = {layers[0], *firsts, *spatial[-1:]}
    return [name for name in layers if name in chosen]


def places(kernels: Mapping[str, torch.Tensor]) -> pd.DataFrame:
    """Where each kernel stands in its network, one row a layer in forward order, as a deep network's names tell it.

    Columns: `layer`, `depth` (from 1), `size` (such as "3×3"), `stage` and `position`, that in its block: what the name
    ends in, "conv2" of "layer3.0.conv2". `kernels`: name → (OUT, IN, KH, KW), in forward order.
    """
    return pd.DataFrame([{"layer": layer, "depth": depth, "size": "×".join(map(str, kernel.shape[2:])), "stage": stage(layer),
                          "position": layer.split(".", 2)[-1]} for depth, (layer, kernel) in enumerate(kernels.items(), start=1)])


def stage(layer: str) -> str:
    """The part of the network that a layer is in: its name up to the first dot."""
    return layer.partition(".")[0]
