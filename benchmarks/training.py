"""A step of training as `tnlib train` takes it, against the same step with the C library's own habits, as ratios.

Both in processes of their own, in turn, three times; the ratio is that of the least times. `--cpu-time` where others use
the machine too.

    python benchmarks/training.py [--threads 2] [--steps 10] [--cpu-time]
"""

import argparse
import subprocess
import sys
import time

import torch

import tnlib
from tnlib.experiments.allocator import keep_freed_memory
from tnlib.experiments.networks import network
from tnlib.experiments.training import Training

NETWORKS = ("vanilla", "vanilla-constant", "vanilla-reversed")
ROUNDS = 3


def seconds(name: str, kept: bool, threads: int, steps: int, clock) -> float:
    """The time of one step of the network's own recipe for CIFAR-10, on images that the library draws."""
    if kept and not keep_freed_memory():
        sys.exit("this C library cannot be told to keep freed memory: there is nothing to compare")
    torch.set_num_threads(threads)
    dataset, entry = tnlib.load_dataset("shapes"), network(name)
    arguments, recipe = entry.trained_with("cifar10", "cpu")
    dataset.train_images, dataset.train_labels = (
        array[:steps * recipe.batch_size] for array in (dataset.train_images, dataset.train_labels))
    training = Training(entry.build(classes=10, **arguments), dataset, recipe, 0, torch.device("cpu"))
    training(0)  # so that everything is allocated once
    start = clock()
    training(1)
    return (clock() - start) / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed (default 10)")
    parser.add_argument("--cpu-time", action="store_true", help="CPU time, on a machine that others use too")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, kept = arguments.one
        clock = time.process_time if arguments.cpu_time else time.perf_counter
        print(seconds(name, kept == "True", arguments.threads, arguments.steps, clock))
        return
    print(f"torch {torch.__version__}, {arguments.threads} threads", flush=True)
    for name in NETWORKS:
        least = {True: float("inf"), False: float("inf")}
        for _ in range(ROUNDS):
            for kept in least:
                found = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", name, str(kept)],
                                       check=True, stdout=subprocess.PIPE, text=True).stdout
                least[kept] = min(least[kept], float(found))
        print(f"{name:18} {1000 * least[True]:6.0f} ms a step, {least[False] / least[True]:.2f}× as fast", flush=True)


if __name__ == "__main__":
    main()
