"""Truncation sweeps and spectra against what one would write without this library, as ratios within one run.

The networks are published ones, on drawn images, and the cells those of `tnlib measure truncation`, with every rank
of its grid; of ResNet-50 every eighth layer and two cuts. The plain way is an SVD for each cell, the weight swapped
in, and the whole eval-mode model run in inference mode, on batches of a hundred images as `tnlib.evaluate` takes
them (`--batch` for others: larger ones are slower on a CPU; the sweep chooses its own). Both ways run in turn, layer
by layer, in the same process with the same threads, and must count the same correct images (but for ties). Prints the
ratios of wall time, the peak memory, and the share of the sweep's time inside convolutions.

    python benchmarks/truncation.py [--images 2000] [--threads 2] [--batch 100] [--cpu-time]
"""

import argparse
import resource
import sys
import time

import numpy as np
import torch

import tnlib
from tnlib.experiments.convolution import Convolution
from tnlib.experiments.kernel_spectra import cut_spectra
from tnlib.experiments.truncations import cut_truncations
from tnlib.experiments.workers import MOST_WORKERS

TARGETS = {"vanilla": 5.0, "resnet50": 2.5, "spectra": 4.0}
TIES = 2 / 10_000


def plain_truncation(kernel, cut, rank):
    """What one would write: permute, SVD, cut off, permute back."""
    order = ["OUT", "IN", "KH", "KW"]
    rows = [order.index(mode) for mode in cut.split(",")]
    axes = rows + [axis for axis in range(4) if axis not in rows]
    moved = kernel.permute(axes)
    matrix = moved.reshape(int(np.prod([kernel.shape[axis] for axis in rows])), -1)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ vh[:rank]).reshape(moved.shape).permute(np.argsort(axes).tolist())


def plain_sweep(model, pixels, labels, layer, cells, batch_size):
    """The number of correct images of each (cut, rank)."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 255
    module, target, counts = model.get_submodule(layer), torch.from_numpy(labels), []
    original = module.weight.data
    with torch.inference_mode():
        for cut, rank in cells:
            module.weight.data = plain_truncation(original, cut, rank).contiguous()
            counts.append(sum(int((model(batch).argmax(1) == right).sum()) for batch, right in zip(
                images.split(batch_size), target.split(batch_size))))
    module.weight.data = original
    return counts


def compare_sweeps(name, model, dataset, layers, images, cuts, batch_size, clock):
    """Time both ways layer after layer; return the ratio."""
    chosen = dataset.subset(images)
    ours = plain = 0.0
    cells = 0
    for layer in layers:
        truncations = cut_truncations(model, layer, cuts)
        start = clock()
        found = [(labels["cut"], labels["rank"], int(evaluation.correct.sum())) for labels, evaluation in
                 tnlib.sweep(model, dataset, truncations, images=chosen, progress=False)]
        middle = clock()
        counts = plain_sweep(model, dataset.test_images[chosen], dataset.test_labels[chosen], layer,
                             [(cut, rank) for cut, rank, _ in found], batch_size)
        end = clock()
        ours, plain, cells = ours + middle - start, plain + end - middle, cells + len(found)
        apart = sum(abs(count - ours_count) for count, (_, _, ours_count) in zip(counts, found))
        assert apart <= max(1, TIES * images * len(found)), f"{layer}: counts differ by {apart} images"
        print(f"  {layer:24} {len(found):3} cells   {(end - middle) / (middle - start):5.2f}×", flush=True)
    print(f"{name}: {plain / ours:.2f}× ({cells} cells, {images} images; target {TARGETS[name]}×)", flush=True)


def share_of_convolutions(model, dataset, images, threads):
    """The share of a sweep's time inside convolutions (with what is fused with them), where the whole network runs."""
    layer, kernel = next(iter(tnlib.conv_kernels(model).items()))
    cells = [({}, {layer: kernel * scale}) for scale in (0.9, 0.8, 0.7)]
    inside, forward = [], Convolution.forward

    def timed(*arguments):
        begun = time.perf_counter()
        output = forward(*arguments)
        inside.append(time.perf_counter() - begun)
        return output

    results = tnlib.sweep(model, dataset, cells, images=dataset.subset(images), progress=False)
    next(results)
    begun, Convolution.forward = time.perf_counter(), timed
    try:
        list(results)
    finally:
        Convolution.forward = forward
    return sum(inside) / (time.perf_counter() - begun) / min(threads, MOST_WORKERS)


def compare_spectra(model, clock):
    """The singular values of all kernels: each distinct cut once, against every cut by `torch.linalg.svdvals`."""
    kernels = tnlib.conv_kernels(model)
    start = clock()
    ours = cut_spectra(kernels)
    middle = clock()
    plain = {layer: {cut.name: torch.linalg.svdvals(cut.matricize(kernel.double())) for cut in tnlib.CUTS}
             for layer, kernel in kernels.items()}
    end = clock()
    worst = max(((values - plain[layer][cut]).abs().max() / plain[layer][cut][0]).item()
                for layer, cuts in ours.items() for cut, values in cuts.items())
    assert worst < 1e-5, f"spectra differ by {worst:.1e} of the largest value"
    print(f"spectra of {len(kernels)} kernels: {(end - middle) / (middle - start):.2f}× "
          f"(largest deviation {worst:.0e} of the largest value; target {TARGETS['spectra']}×)", flush=True)


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB on Linux → GiB


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="images of each cell (default 2000)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--batch", type=int, default=100, help="images in a batch of the plain way (default 100)")
    parser.add_argument("--cpu-time", action="store_true", help="ratios of CPU time, on a machine that others use too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    dataset = tnlib.load_dataset("shapes")
    print(f"torch {torch.__version__}, {arguments.threads} threads, float32", flush=True)

    vanilla = tnlib.load_model("vanilla", "shapes")
    compare_sweeps("vanilla", vanilla, dataset, tnlib.conv_kernels(vanilla), arguments.images, tnlib.CUTS,
                   arguments.batch, clock)
    print(f"  inside convolutions: {share_of_convolutions(vanilla, dataset, arguments.images, arguments.threads):.0%}; "
          f"peak memory so far {peak_memory():.1f} GiB", flush=True)

    deep = tnlib.load_model("resnet50", "cifar10")
    layers = list(tnlib.conv_kernels(deep))[::8]  # seven layers, evenly across the depth
    images = max(1, arguments.images // 5)
    compare_sweeps("resnet50", deep, dataset, layers, images, ["OUT", "OUT,KW"], arguments.batch, clock)
    print(f"  inside convolutions: {share_of_convolutions(deep, dataset, images, arguments.threads):.0%}; "
          f"peak memory so far {peak_memory():.1f} GiB", flush=True)
    compare_spectra(deep, clock)


if __name__ == "__main__":
    main()
