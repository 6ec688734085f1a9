"""The sweep: what a network answers with some of its kernels replaced, for one set of replacements after another.

Only what a replacement reaches is computed for it. The values that come before (`Split.before`) are computed once for
all consecutive cells that reach the same part of the network, and kept. Truncations at one cut, of ascending rank, each
grow from the one before (see `growing`).

Memory, besides the network's weights (three times: the model, its copy, and as they are laid out for speed, where a
3×3 kernel can take four times as much): `KEPT_BYTES` of kept values; `BATCH_BYTES` while a batch runs (more where
`LEAST_BATCH` images need more), and a few times the values of a layer whose truncations grow; `KERNEL_BYTES` of kernels
where the kept values of all images do not fit, else one cell's or one cut's. With an executor, each worker holds one unit
of work, and the calling process the kernels of `AHEAD` + 1 groups of cells.
"""

import copy
import dataclasses
import itertools
import math
import pickle
import threading
import uuid
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..tensors.factors import KernelFactors
from .evaluation import Evaluation, check_logits, exact_float32, split_arrays, to_unit_floats
from .graph import Network, traced
from .growing import continues, runs
from .networks import conv_kernels

KEPT_BYTES = 2**30
BATCH_BYTES, GPU_BATCH_BYTES = 2**26, 2**30
LEAST_BATCH, MOST_BATCH, GPU_MOST_BATCH = 32, 128, 2048  # on a CPU, larger ones leave the caches and are slower
KERNEL_BYTES = 2**28
UNIT_IMAGES, UNIT_CELLS = 1000, 64  # at most, of a worker's unit of work
AHEAD = 2  # groups of cells that are handed to an executor before the results of the first are asked for
PROBE_IMAGES = 2


def sweep(model, dataset, replacements, executor=None, *, preprocess=None, split="test", images=None, progress=True):
    """Yield (labels, `Evaluation`) for each (labels, {layer: kernel}) of `replacements`, in their order.

    `replacements`: an iterable; layers are named as in `model.named_modules()`, kernels are (OUT, IN/groups, KH, KW) in
    the layer's dtype, or their factors (as of `tnlib.factorize`), and an empty dict leaves the network as it is. Those
    of `cut_truncations` grow from one rank to the next, in a fraction of the time. `preprocess` and `split` as in
    `evaluate`; `images`: indices into the split (None: all), which is also their order in `Evaluation.correct`.
    `executor`: a `concurrent.futures.Executor` whose workers each take (cells of one group, some of the images) with
    one thread; None: this process with torch's own threads. The results are the same. `progress`: a bar with the cells
    done.

    The model may be any `nn.Module` with `Conv2d` layers; it is copied, and evaluated in eval mode and float32 exactly
    as `evaluate` does, up to rounding. One that `torch.fx` cannot trace runs whole for every cell, with a warning.
    Raises `ValueError` (before anything runs, where `replacements` is a list) for an unknown layer, a kernel of another
    shape or dtype, no replacements, a model without convolutions or that does not take such images, and indices out of
    range.
    """
    layers = conv_kernels(model)
    pixels, labels = _chosen(*split_arrays(dataset, split), images)
    computed = {layer for layer in layers if "weight" not in model.get_submodule(layer)._parameters}
    cells = _checked(replacements, layers, computed)
    preprocess = preprocess or to_unit_floats
    if executor is not None:
        model = copy.deepcopy(model).cpu()
    with torch.no_grad(), exact_float32():
        probe = _probe(model, pixels, labels, preprocess)
        graph = traced(model, probe)
    total = len(replacements) if hasattr(replacements, "__len__") else None
    return _results(graph, probe, pixels, labels, cells, preprocess, executor, total, progress)


def _results(graph, probe, pixels, labels, cells, preprocess, executor, total, progress):
    # As bytes, pickled once: tensors handed over between processes would each hold a file open.
    network = None if executor is None else pickle.dumps((graph, probe))
    key, threads, pending = uuid.uuid4().hex, torch.get_num_threads(), deque()
    if executor is not None:
        _graphs[key] = copy.deepcopy((graph, probe))
    worker = Worker(graph, probe)  # which makes the graph its own

    def submit(group):
        kernels = [cell for _, cell in group.cells]
        if executor is None:
            call = lambda *images: _done(worker.evaluate(preprocess, kernels, *images))
        else:
            kernels = pickle.dumps([{layer: _own(kernel) for layer, kernel in cell.items()} for cell in kernels])
            call = lambda *images: executor.submit(_remote_unit, key, network, preprocess, kernels, *images)
        return [call(start, pixels[start:start + group.images], labels[start:start + group.images])
                for start in range(0, len(labels), group.images)]

    with tqdm(total=total, unit="cell", disable=not progress) as bar:
        try:
            for group in _groups(cells, worker.network, len(labels), executor is not None):
                pending.append((group, submit(group)))
                if executor is None or len(pending) > AHEAD:
                    yield from _collected(*pending.popleft(), bar)
            while pending:
                yield from _collected(*pending.popleft(), bar)
        finally:
            for _, units in pending:
                for unit in units:
                    unit.cancel()
            _graphs.pop(key, None)
            torch.set_num_threads(threads)  # a pool of threads shares this process's setting


def _collected(group, units, bar):
    """(labels, Evaluation) of each cell of a group from its units, each (correct [cells, images], loss [cells])."""
    correct, loss = zip(*(unit.result() for unit in units))
    correct, loss = np.concatenate(correct, axis=1), np.sum(loss, axis=0)
    for (labels, _), right, total in zip(group.cells, correct, loss):
        bar.update()
        yield labels, Evaluation(right, float(total) / len(right))


# ---- groups of cells ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Group:
    """Consecutive cells that reach the same part of the network; they are evaluated on so many `.images` at a time."""

    cells: list
    images: int


def _groups(cells, network: Network, num_images: int, parallel: bool):
    reach = lambda cell: network.reached(cell[1])
    for reached, run in itertools.groupby(cells, reach):
        images = max(LEAST_BATCH, KEPT_BYTES // max(1, network.split(reached).kept_bytes))
        images = min(images, UNIT_IMAGES) if parallel else images
        # Where the kept values of all images fit, they outlast the group: then nothing is gained by a larger one.
        # But what continues the cell before needs that one in its group.
        most = 1 if images >= num_images and not parallel else UNIT_CELLS
        group, held = [], 0
        for cell in run:
            size = sum(tensor.numel() * tensor.element_size() for kernel in cell[1].values() for tensor in _tensors(kernel))
            single = most == 1 and group and not continues(cell[1], group[-1][1])
            if group and (single or len(group) == UNIT_CELLS or held + size > KERNEL_BYTES):
                yield Group(group, images)
                group, held = [], 0
            group.append(cell)
            held += size
        yield Group(group, images)


# ---- one unit of work: some cells on some images -----------------------------------------------------------------

class Worker:
    """Evaluates units of work; the values kept for the last unit serve the next on the same images."""

    def __init__(self, graph, probe):
        with torch.no_grad(), exact_float32():
            self.network = Network(graph, probe)
        self.device = probe.device
        self._kept = None, None

    def evaluate(self, preprocess, cells, start, pixels, labels) -> tuple[np.ndarray, np.ndarray]:
        """Correct (bool, [cells, images]) and summed loss ([cells]) of replacements `cells` that reach the same."""
        self.network.put({})  # what comes before the replaced layers has kernels of its own
        reached, found = self.network.reached(cells[0]), []
        with torch.inference_mode(), exact_float32():
            batches = self._before((reached, start, len(labels)), preprocess, pixels, labels)
            for run in runs(cells):
                if self.network.grow(run):
                    found += self._answers(reached, batches, len(run))
                    continue
                for kernels in run:
                    self.network.put(kernels)
                    found += self._answers(reached, batches)
        correct, loss = zip(*found)
        return np.stack(correct), np.array(loss)

    def _answers(self, reached, batches, cells=1) -> list[tuple[np.ndarray, float]]:
        """(correct, summed loss) of so many cells, one with each call of the network on a batch."""
        after = self.network.split(reached).after
        correct, loss = [[] for _ in range(cells)], [0.0] * cells
        for values, target in batches:
            for k in range(cells):
                logits = after(*values)
                correct[k].append((logits.argmax(1) == target).cpu())
                loss[k] += F.cross_entropy(logits.double(), target, reduction="sum").item()
        return [(torch.cat(right).numpy(), total) for right, total in zip(correct, loss)]

    def _before(self, key, preprocess, pixels, labels) -> list:
        """(kept values, labels) of each batch."""
        if self._kept[0] != key:
            self._kept = None, None  # freed before the next are computed
            split = self.network.split(key[0])
            most, limit = (MOST_BATCH, BATCH_BYTES) if self.device.type == "cpu" else (GPU_MOST_BATCH, GPU_BATCH_BYTES)
            size = max(LEAST_BATCH, min(most, limit // max(1, split.peak_bytes)))
            size = math.ceil(len(labels) / math.ceil(len(labels) / size))  # all but alike: weights are laid out for one
            batches = []
            for first in range(0, len(labels), size):
                image = preprocess(torch.from_numpy(pixels[first:first + size]).to(self.device)).to(self.device)
                target = torch.from_numpy(labels[first:first + size]).to(self.device)
                batches.append((split.before(image), target))
            self._kept = key, batches
        return self._kept[1]


def _tensors(kernel) -> tuple[torch.Tensor, ...]:
    return kernel.factors if isinstance(kernel, KernelFactors) else (kernel,)


def _own(kernel):
    """A kernel or its factors on the CPU, without what else their memory holds: all of it would be pickled."""
    if isinstance(kernel, KernelFactors):
        return dataclasses.replace(kernel, factors=tuple(factor.cpu().clone() for factor in kernel.factors))
    return kernel.cpu()


def _done(result) -> Future:
    future = Future()
    future.set_result(result)
    return future


# Of the sweeps under way, for workers that are threads of this process: unpickling a graph traces it anew, and while one
# thread traces, torch takes the calls of modules in all others for part of it.
_graphs: dict = {}
_mine = threading.local()  # an executor's worker is a process or a thread; each keeps the network of the last sweep


def _remote_unit(key, network, preprocess, cells, *images):
    torch.set_num_threads(1)  # the executor's workers share the cores, and a forked process can have no other threads
    if getattr(_mine, "key", None) != key:
        _mine.worker = Worker(*(copy.deepcopy(_graphs[key]) if key in _graphs else pickle.loads(network)))
        _mine.key = key
    return _mine.worker.evaluate(preprocess, pickle.loads(cells), *images)


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


def _probe(model, pixels, labels, preprocess) -> torch.Tensor:
    """Some images as the model takes them. Raises `ValueError` when it does not."""
    parameter = next(model.parameters())
    probe = preprocess(torch.from_numpy(pixels[:PROBE_IMAGES]).to(parameter.device)).to(parameter.device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        logits = model(probe)
    except RuntimeError as error:
        raise ValueError(f"{type(model).__name__} does not take images of shape {tuple(pixels.shape[1:])} "
                         f"({tuple(probe.shape[1:])} after preprocess): {error}") from None
    finally:
        for module, training in modes:
            module.training = training
    check_logits(logits, torch.from_numpy(np.sort(labels)[-len(probe):]))  # there must be a class for the highest
    return probe


def _checked(replacements, layers, computed):
    """The cells, of which those of a list are all checked now and others as they come; `computed`: layers' names."""
    check = lambda cell: _checked_cell(cell, layers, computed)
    known = isinstance(replacements, (list, tuple))
    cells = iter([check(cell) for cell in replacements]) if known else map(check, replacements)
    try:
        first = next(cells)
    except StopIteration:
        raise ValueError("replacements is empty: it must give at least one (labels, {layer: kernel})") from None
    return itertools.chain([first], cells)


def _checked_cell(cell, layers, computed):
    if not (isinstance(cell, tuple) and len(cell) == 2 and isinstance(cell[1], dict)):
        raise TypeError(f"each of replacements must be (labels, {{layer: kernel}}), got {cell!r}")
    for layer, kernel in cell[1].items():
        if layer not in layers:
            raise ValueError(f"unknown layer {layer!r}: the model's convolutions are {', '.join(map(repr, layers))}")
        if layer in computed:
            raise ValueError(f"the layer {layer!r} computes its weight (a parametrisation): remove that first")
        want = layers[layer]
        known = isinstance(kernel, (torch.Tensor, KernelFactors))
        dtype = _tensors(kernel)[0].dtype if known else None
        if not known or tuple(kernel.shape) != tuple(want.shape) or dtype != want.dtype:
            got = f"{dtype} {tuple(kernel.shape)}" if known else type(kernel).__name__
            raise ValueError(f"the kernel of {layer!r} must be {want.dtype} {tuple(want.shape)}, got {got}")
    return cell
