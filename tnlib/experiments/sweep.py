"""The sweep: what a network answers with some of its kernels replaced, for one set of replacements after another.

Only what a replacement reaches is computed for it. The values that come before (`Split.before`) are computed once for
all consecutive cells that reach the same part of the network, and kept. Truncations at one cut, of ascending rank, each
grow from the one before (see `growing`). What is found of a group of cells on part of the images can be kept in a file
(see `store`), so that a sweep that is cut off loses little.

Memory, besides the network's weights (in the model, and for each worker two copies, one as it is and one laid out for
speed, where a 3×3 kernel can take four times as much): `KEPT_BYTES` (on a GPU `GPU_KEPT_BYTES`) of kept values; for each worker `BATCH_BYTES` while a
batch runs (more where `LEAST_BATCH` images need more), and a few times the values of a layer whose truncations grow;
`KERNEL_BYTES` of kernels where the kept values of all images do not fit, else one cell's or one cut's. With an executor,
each worker holds one unit of work, and the calling process the kernels of `workers.AHEAD` + 1 groups of cells.
"""

import copy
import dataclasses
import itertools
import pickle
import reprlib
import warnings
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ..tensors.checks import check_device
from ..tensors.factors import KernelFactors
from .calls import CALLS
from .evaluation import Evaluation, eval_mode, exact_float32, probed, split_arrays, to_unit_floats
from .growing import continues
from .networks import conv_kernels
from .replacements import not_replaceable
from .tracing import traced
from .workers import LEAST_BATCH, Remote, Threads

# 5,000 images after the first stage of a ResNet-50 on CIFAR (of stem s2; on a GPU s1), 10,000 after 128 channels of 16×16
KEPT_BYTES, GPU_KEPT_BYTES = 2**31, 2**33
KERNEL_BYTES = 2**28
UNIT_CELLS = 64  # at most, of a unit of work


def sweep(model, dataset, replacements, executor=None, *, preprocess=None, split="test", images=None, progress=True,
          units=None):
    """Yield (labels, `Evaluation`) for each (labels, {layer: kernel}) of `replacements`, in their order.

    `replacements`: an iterable; layers are named as in `model.named_modules()`, kernels are (OUT, IN/groups, KH, KW) in
    the layer's dtype, or their factors (as of `tnlib.factorize`), and an empty dict leaves the network as it is. Those
    of `cut_truncations` grow from one rank to the next, in a fraction of the time. `preprocess` and `split` as in
    `evaluate`; `images`: indices into the split (None: all), which is also their order in `Evaluation.correct`.
    `executor`: a `concurrent.futures.Executor` whose workers each take (cells of one group, some of the images) with
    one thread; None: this process, where each of torch's threads takes a share of the images. The results are the same.
    `progress`: a bar with the cells done. `units`: a `store.Store`, which keeps what is found of a group of cells (each with a "key"
    among its labels) on part of the images, and has it of a sweep of the same that was cut off. A pair ({}, {}) gives the network
    as it is: the baseline of the others, and a check of `preprocess`. An answer of NaN is wrong: replacements may blow up.

    A generator is read ahead of what is yielded, by up to a group of `UNIT_CELLS` cells (with an executor by `workers.AHEAD` more
    groups); what it raises is raised once the cells before it have been yielded. The kernels of a list are checked when the sweep
    begins and read when their turn comes: leave them as they are until then. A layer that the network does not call in eval mode (a
    head for training alone) changes nothing, which a warning says.

    The model may be any `nn.Module` with `Conv2d` layers; it is copied, and evaluated in eval mode and float32 exactly
    as `evaluate` does, up to rounding. One that `torch.fx` cannot trace runs whole for every cell, with a warning.
    Raises `ValueError` (before anything runs, where `replacements` is a list) for an unknown layer, one that computes its
    weight or shares it, a kernel of another shape or dtype, NaN or infinity in a kernel or the model, no replacements, a
    model without convolutions, that does not take such images or answers to each by its batch (or a `preprocess` that does),
    one that cannot be pickled for an executor (or a `preprocess` for its processes), and indices out of range.
    """
    if executor is not None and (isinstance(executor, type) or not hasattr(executor, "submit")):
        raise TypeError(f"executor must be a concurrent.futures.Executor or None, got {executor!r}")
    if isinstance(executor, ProcessPoolExecutor):
        try:
            pickle.dumps(preprocess)
        except Exception as error:  # of a lambda, or whatever it holds
            raise ValueError(f"preprocess cannot be handed to other processes ({error}): define it at the top of a module") from None
    layers = conv_kernels(model)
    for name, parameter in model.named_parameters():
        check_device(parameter.device, f"the model's {name}")
        if not torch.isfinite(parameter).all():
            raise ValueError(f"the model's {name} holds NaN or infinity")
    for name, buffer in model.named_buffers():  # infinity may be meant: a mask of classes
        if buffer.isnan().any():
            raise ValueError(f"the model's {name} holds NaN")
    pixels, labels = _chosen(*split_arrays(dataset, split), images)
    refused = not_replaceable(model, layers)
    for layer in getattr(replacements, "kernels", ()):
        _check_layer(layer, layers, refused)
    failure = []
    cells = _until_it_raises(_checked(replacements, layers, refused), failure)
    preprocess = preprocess or to_unit_floats
    with torch.inference_mode(False), torch.no_grad(), exact_float32():
        with CALLS.as_they_are(), eval_mode(model):
            probe = probed(model, pixels, labels, preprocess)
        if executor is not None:
            model, probe = copy.deepcopy(model).cpu(), probe.cpu()
        graph = traced(model, probe)
    total = len(replacements) if hasattr(replacements, "__len__") else None
    return _results(graph, probe, pixels, labels, cells, failure, preprocess, executor, total, progress, units)


def _results(graph, probe, pixels, labels, cells, failure, preprocess, executor, total, progress, store):
    crew = Threads(graph, probe) if executor is None else Remote(graph, probe, executor)
    pending = deque()
    with tqdm(total=total, unit="cell", disable=not progress) as bar, crew:
        kept = KEPT_BYTES if probe.device.type == "cpu" else GPU_KEPT_BYTES
        for group in _groups(cells, crew, len(labels), executor is not None, kept):
            kernels, found, begun = [cell for _, cell in group.cells], {}, {}
            for first in range(0, len(labels), group.images):
                images = slice(first, min(first + group.images, len(labels)))
                if (before := store and store.parts(group.labels, images)) is not None:
                    found[first] = before
                else:
                    begun[first] = crew.submit(preprocess, kernels, first, pixels[images], labels[images])
            pending.append((group, found, begun))
            if len(pending) > crew.ahead:
                yield from _collected(crew, *pending.popleft(), store, bar)
        while pending:
            yield from _collected(crew, *pending.popleft(), store, bar)
        if failure:
            raise failure[0]


def _collected(crew, group, found, begun, store, bar):
    """(labels, Evaluation) of each cell of a group from its units of work: first image → what was `found` before, and → what
    was `begun` of the others."""
    parts = len(found) + len(begun)
    several = parts > 1
    for (correct, loss), first in zip(crew.results(begun.values()), begun):  # in this order: the results know when they end
        found[first] = correct, loss
        if several:  # of a deep network on a CPU a group takes half an hour, and the bar counts its cells when it has ended
            bar.set_postfix_str(f"of the next {len(group.cells)} part {len(found)} of {parts}" if len(found) < parts else "")
        if store and several:
            store.add_parts(group.labels, slice(first, first + correct.shape[1]), correct, loss)
    correct, loss = zip(*(found[first] for first in sorted(found)))
    correct, loss = np.concatenate(correct, axis=1), np.sum(loss, axis=0)
    for labels, right, total in zip(group.labels, correct, loss):
        bar.update()
        yield labels, Evaluation(right, float(total) / len(right))


# ---- groups of cells ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Group:
    """Consecutive cells that reach the same part of the network; they are evaluated on so many `.images` at a time."""

    cells: list
    images: int

    @property
    def labels(self) -> list[dict]:
        return [labels for labels, _ in self.cells]


def _groups(cells, crew, num_images: int, parallel: bool, kept_bytes: int):
    reach = lambda cell: crew.network.reached(cell[1])
    said = set()  # layers of which it is said, where it is so, that they do nothing
    for reached, run in itertools.groupby(cells, reach):
        images = max(LEAST_BATCH, kept_bytes // max(1, crew.network.split(reached).kept_bytes))
        # Where the kept values of all images fit, they outlast the group: then nothing is gained by a larger one.
        # But what continues the cell before needs that one in its group.
        most = 1 if images >= num_images and not parallel else UNIT_CELLS
        # Else they are computed for each group, and the fewer images at a time, the less is lost by a sweep that is cut off.
        images = images if most == 1 else min(images, crew.unit_images)
        group, held = [], 0
        for cell in run:
            for layer in cell[1].keys() - said:
                said.add(layer)
                if not crew.network.reached([layer]):
                    warnings.warn(f"{layer!r}: not called in eval mode, so no kernel in it changes what the model answers", stacklevel=3)
            size = sum(tensor.numel() * tensor.element_size() for kernel in cell[1].values() for tensor in _tensors(kernel))
            single = most == 1 and group and not continues(cell[1], group[-1][1])
            if group and (single or len(group) == UNIT_CELLS or held + size > KERNEL_BYTES):
                yield Group(group, images)
                group, held = [], 0
            group.append(cell)
            held += size
        yield Group(group, images)


def _tensors(kernel) -> tuple[torch.Tensor, ...]:
    return kernel.factors if isinstance(kernel, KernelFactors) else (kernel,)


# ---- what is asked for, checked ----------------------------------------------------------------------------------

def _chosen(pixels, labels, indices):
    if indices is None:
        return pixels, labels
    indices = np.asarray(indices)
    if indices.ndim != 1 or not len(indices) or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"images must be indices, at least one, got {indices.dtype} of shape {indices.shape}")
    if indices.min() < 0 or indices.max() >= len(labels):
        raise ValueError(f"images must be indices from 0 to {len(labels) - 1}, got {indices.min()} to {indices.max()}")
    return pixels[indices], labels[indices]


def _checked(replacements, layers, refused):
    """The cells, of which those of a list are all checked now and others as they come; `refused`: layer → why."""
    check = lambda cell: _checked_cell(cell, layers, refused)
    if not isinstance(replacements, Iterable):
        raise TypeError(f"replacements must give (labels, {{layer: kernel}}) one after another, got {replacements!r}")
    known = isinstance(replacements, (list, tuple))
    cells = iter([check(cell) for cell in replacements]) if known else (_of_its_own(check(cell)) for cell in replacements)
    try:
        first = next(cells)
    except StopIteration:
        raise ValueError("replacements is empty: it must give at least one (labels, {layer: kernel})") from None
    return itertools.chain([first], cells)


def _until_it_raises(cells, failure: list):
    """The cells of an iterator up to where it raises; the error goes to `failure`, for when these have been evaluated."""
    try:
        yield from cells
    except Exception as error:  # whatever the caller's own generator raises
        failure.append(error)


def _of_its_own(cell):
    """The cell as it is now: a generator may write its next kernel, or labels, into the same memory before this one is evaluated."""
    own = lambda kernel: (kernel.clone() if isinstance(kernel, torch.Tensor)
                          else dataclasses.replace(kernel, factors=tuple(factor.clone() for factor in kernel.factors)))
    labels, kernels = cell
    return copy.copy(labels), {layer: own(kernel) for layer, kernel in kernels.items()}


def _check_layer(layer, layers, refused):
    if layer not in layers:
        raise ValueError(f"unknown layer {layer!r}: the model's convolutions are {', '.join(map(repr, layers))}")
    if layer in refused:
        raise ValueError(f"the layer {layer!r} {refused[layer]}")


def _checked_cell(cell, layers, refused):
    if not (isinstance(cell, tuple) and len(cell) == 2 and isinstance(cell[1], dict)):
        raise TypeError(f"each of replacements must be (labels, {{layer: kernel}}), got {reprlib.repr(cell)}")
    for layer, kernel in cell[1].items():
        _check_layer(layer, layers, refused)
        want = layers[layer]
        known = isinstance(kernel, (torch.Tensor, KernelFactors))
        dtype = _tensors(kernel)[0].dtype if known else None
        for tensor in _tensors(kernel) if known else ():
            check_device(tensor.device, f"the kernel of {layer!r}")
            if tensor.layout != torch.strided:
                raise ValueError(f"the kernel of {layer!r} must be a dense tensor, got one of layout {tensor.layout}")
        if known and not all(torch.isfinite(tensor).all() for tensor in _tensors(kernel)):
            raise ValueError(f"the kernel of {layer!r} holds NaN or infinity")
        if not known or tuple(kernel.shape) != tuple(want.shape) or dtype != want.dtype:
            got = f"{dtype} {tuple(kernel.shape)}" if known else type(kernel).__name__
            raise ValueError(f"the kernel of {layer!r} must be {want.dtype} {tuple(want.shape)}, got {got}")
    return cell
