"""Who evaluates the cells of a sweep: threads of this process, or the workers of an executor.

Each worker has a network of its own, and takes units of work: some cells that reach the same part of the network, on
some of the images. It runs with one of torch's threads: several that share one batch wait for each other after every
operation, which on two cores takes a third of the time and more.
"""

import copy
import dataclasses
import math
import pickle
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional as F

from ..tensors.factors import KernelFactors
from .calls import CALLS
from .evaluation import exact_float32, prepared
from .graph import NetworkGraph
from .growing import runs

BATCH_BYTES, GPU_BATCH_BYTES = 2**26, 2**32
LEAST_BATCH, MOST_BATCH, GPU_MOST_BATCH = 32, 128, 2048  # on a CPU, larger ones leave the caches and are slower
MOST_WORKERS = 8  # in this process, each with its own copies of the network
UNIT_IMAGES = 256  # at most, of a unit of work whose values are not kept: what is lost when a sweep is cut off
AHEAD = 2  # groups of cells that are handed to an executor before the results of the first are asked for


class Worker:
    """Evaluates units of work; the values kept for the last unit serve the next on the same images."""

    def __init__(self, graph, probe):
        with CALLS.as_they_are(), torch.no_grad(), exact_float32():
            self.network = NetworkGraph(graph, probe)
        self.device = probe.device
        self.stopped = False  # set by another thread: what is under way raises `CancelledError`
        self._kept = None, None

    def evaluate(self, preprocess, cells, start, pixels, labels) -> tuple[np.ndarray, np.ndarray]:
        """Correct (bool, [cells, images]) and summed loss ([cells]) of replacements `cells` that reach the same."""
        self.network.put({})  # what comes before the replaced layers has kernels of its own
        reached, found = self.network.reached(cells[0]), []
        with CALLS.as_they_are(), torch.inference_mode(), exact_float32():
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
            if self.stopped:
                raise CancelledError
            for k in range(cells):
                logits = after(*values)
                best, answer = logits.max(1)
                correct[k].append(((answer == target) & best.isfinite()).cpu())  # NaN is no answer
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
                image = prepared(preprocess, torch.from_numpy(pixels[first:first + size]).to(self.device), self.device)
                target = torch.from_numpy(labels[first:first + size]).to(self.device)
                batches.append((split.before(image), target))
            self._kept = key, batches
        return self._kept[1]


class Threads:
    """This process: one worker for each of torch's threads (at most `MOST_WORKERS`, which share them), or one on a GPU.

    Each has its own share of the images, and so keeps its values from one group of cells to the next.
    """

    ahead = 0

    def __init__(self, graph, probe):
        self.threads = torch.get_num_threads()
        count = min(self.threads, MOST_WORKERS) if probe.device.type == "cpu" else 1
        copies = [copy.deepcopy(graph) for _ in range(count - 1)]
        self.workers = [Worker(own, probe) for own in (graph, *copies)]
        self.pools = [ThreadPoolExecutor(1, thread_name_prefix="sweep") for _ in self.workers]
        self.network = self.workers[0].network
        self.unit_images = UNIT_IMAGES * len(self.workers) if probe.device.type == "cpu" else sys.maxsize

    def submit(self, preprocess, cells, start, pixels, labels) -> list:
        """Begin a unit of work; returns what `results` takes."""
        shares = min(len(self.workers), math.ceil(len(labels) / LEAST_BATCH))
        bounds = [len(labels) * k // shares for k in range(shares + 1)]
        return [pool.submit(self._evaluate, worker, preprocess, cells, start + first, pixels[first:end], labels[first:end])
                for worker, pool, first, end in zip(self.workers, self.pools, bounds, bounds[1:])]

    def _evaluate(self, worker, *unit):
        if len(self.workers) > 1:
            torch.set_num_threads(self.threads // len(self.workers))
        return worker.evaluate(*unit)

    def results(self, units) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(correct [cells, images], summed loss [cells]) of each of the units, which are all that were begun."""
        try:
            for unit in units:
                correct, loss = zip(*(share.result() for share in unit))
                yield np.concatenate(correct, axis=1), np.sum(loss, axis=0)
        finally:
            torch.set_num_threads(self.threads)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for worker, pool in zip(self.workers, self.pools):
            worker.stopped = True
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self.threads)  # a worker that was stopped has set its own


class Remote:
    """The workers of an executor, each with one thread: processes, threads of this process, or those of other machines."""

    ahead = AHEAD

    def __init__(self, graph, probe, executor):
        self.executor, self.key, self.threads, self.units = executor, uuid.uuid4().hex, torch.get_num_threads(), []
        self.unit_images = UNIT_IMAGES
        # As bytes, pickled once: tensors handed over between processes would each hold a file open.
        try:
            self.pickled = pickle.dumps((graph, probe))
        except Exception as error:  # whatever a part of the model raises
            raise ValueError(f"the model cannot be handed to an executor's workers: {type(error).__name__}: {error}; "
                             "without one it is swept in this process") from None
        self.handed_over = None, None  # the cells of the last group, and the bytes that its units share
        _sweeps[self.key] = copy.deepcopy((graph, probe)), {}
        with CALLS.as_they_are(), torch.no_grad(), exact_float32():
            self.network = NetworkGraph(graph, probe)

    def submit(self, preprocess, cells, *images):
        """Begin a unit of work; returns what `results` takes."""
        if self.handed_over[0] is not cells:  # once for all units: for each of them, a deep network's would be gigabytes
            self.handed_over = cells, pickle.dumps([{layer: _own(kernel) for layer, kernel in cell.items()} for cell in cells])
        self.units.append(self.executor.submit(_remote_unit, self.key, self.pickled, preprocess, self.handed_over[1], *images))
        return self.units[-1]

    def results(self, units) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(correct [cells, images], summed loss [cells]) of each of the units, which are the first that were begun."""
        for unit in units:
            yield unit.result()
            self.units.remove(unit)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for unit in self.units:
            unit.cancel()
        _sweeps.pop(self.key, None)
        torch.set_num_threads(self.threads)  # a pool of threads shares this process's setting


def _own(kernel):
    """A kernel or its factors on the CPU, without what else their memory holds: all of it would be pickled."""
    if isinstance(kernel, KernelFactors):
        return dataclasses.replace(kernel, factors=tuple(factor.cpu().clone() for factor in kernel.factors))
    return kernel.cpu().clone()


# Of the sweeps under way in this process, for workers that are its threads: (graph, probe) to copy, as unpickling a graph traces it
# anew, and the worker of each thread; they end with the sweep, however long the threads live.
_sweeps: dict = {}
_mine = threading.local()  # a worker that is a process keeps the network of the last sweep


def _remote_unit(key, network, preprocess, cells, *images):
    torch.set_num_threads(1)  # the executor's workers share the cores, and a forked process can have no other threads
    if (own := _sweeps.get(key)) is not None:
        found, workers = own
        me = threading.get_ident()
        if me not in workers:
            workers[me] = Worker(*copy.deepcopy(found))
        worker = workers[me]
    else:
        if getattr(_mine, "key", None) != key:
            with CALLS.replaced():
                found = pickle.loads(network)
            _mine.worker, _mine.key = Worker(*found), key
        worker = _mine.worker
    return worker.evaluate(preprocess, pickle.loads(cells), *images)
