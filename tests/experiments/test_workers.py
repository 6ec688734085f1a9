"""Workers of a sweep, in this process and in executors: the same rows, the threads that they take, and how they end."""

import gc
import itertools
import os
import signal
import threading
import time
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.experiments.sweep_cases import cells_of, model_and_data, noisy, run, vanilla_cells
from tnlib import conv_kernels, sweep
from tnlib.experiments import workers as workers_module
from tnlib.experiments.truncations import cut_truncations


# ---- executors ---------------------------------------------------------------------------------------------------

def dask():
    from distributed import Client
    client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
    executor = client.get_executor()
    executor.close = client.close
    return executor


@pytest.mark.parametrize("make", [lambda: ThreadPoolExecutor(2), lambda: ProcessPoolExecutor(2), dask],
                         ids=["threads", "processes", "dask"])
def test_an_executor_gives_the_same_rows_in_the_same_order(make, monkeypatch):
    monkeypatch.setattr(workers_module, "UNIT_IMAGES", 70)
    model, dataset = model_and_data("vanilla")
    cells = cells_of(model)
    executor, handed = make(), []
    submit = executor.submit
    monkeypatch.setattr(executor, "submit", lambda *unit: handed.append(unit) or submit(*unit))
    try:
        found = run(model, dataset, iter(cells), executor)
    finally:
        getattr(executor, "close", executor.shutdown)()
    assert len(handed) > 1
    for (labels, evaluation), (same, expected) in zip(found, run(model, dataset, cells), strict=True):
        assert labels == same and np.array_equal(evaluation.correct, expected.correct)
        assert evaluation.loss == pytest.approx(expected.loss, rel=1e-6)


def test_the_units_of_a_group_share_the_bytes_of_their_kernels(monkeypatch):
    monkeypatch.setattr(workers_module, "UNIT_IMAGES", 70)
    model, dataset = model_and_data("vanilla")
    handed = []

    class Recording(ThreadPoolExecutor):
        def submit(self, evaluate, key, network, preprocess, kernels, start, *images):
            handed.append((start, kernels))
            return super().submit(evaluate, key, network, preprocess, kernels, start, *images)

    with Recording(1) as executor:
        run(model, dataset, cells_of(model), executor)
    starts = [start for start, _ in handed]
    groups = starts.count(0)
    assert 1 < groups < len(starts), "several groups, of several units"
    assert len({id(kernels) for _, kernels in handed}) == groups


def test_workers_use_one_thread_and_this_process_gets_its_own_back():
    model, dataset, cells = vanilla_cells(2)
    seen = []

    def preprocess(batch):
        seen.append(torch.get_num_threads())
        return batch.permute(0, 3, 1, 2) / 255

    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(1) as executor:
            run(model, dataset, cells, executor, preprocess=preprocess)
        assert seen[-1] == 1 and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_threads_of_an_executor_keep_nothing_of_a_sweep_that_has_ended(monkeypatch):
    made = []
    own = workers_module.Worker.__init__
    monkeypatch.setattr(workers_module.Worker, "__init__", lambda self, *given: (own(self, *given), made.append(weakref.ref(self)))[0])
    with ThreadPoolExecutor(2) as pool:
        assert len(run(*vanilla_cells(), executor=pool)) == 5 and made
        gc.collect()
        assert not [worker for worker in made if worker() is not None] and not workers_module._sweeps


def test_an_error_in_a_worker_arrives():
    model, dataset, cells = vanilla_cells(2)
    seen = itertools.count()

    def failing(batch):
        if next(seen):
            raise OSError("no more images")
        return batch.permute(0, 3, 1, 2) / 255

    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="preprocess fails .*: OSError: no more images"):
        run(model, dataset, cells, executor, preprocess=failing)


# ---- threads of this process -------------------------------------------------------------------------------------

@pytest.fixture
def three_threads():
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("most", [1, 2, 8])
@pytest.mark.parametrize("name", ["vanilla", "grouped", "written"])
@pytest.mark.filterwarnings("ignore:.*cannot be traced")
def test_each_thread_takes_a_share_of_the_images(name, most, monkeypatch):
    monkeypatch.setattr(workers_module, "MOST_WORKERS", most)
    model, dataset = model_and_data(name)
    layer, kernel = list(conv_kernels(model).items())[-1]
    cells = [*cells_of(model), *cut_truncations(model, layer, ["OUT"]), ({"cell": "noisy"}, {layer: noisy(kernel)})]
    alone, seen = run(model, dataset, cells), set()

    def preprocess(batch):
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return batch.permute(0, 3, 1, 2) / 255

    torch.set_num_threads(3)
    try:
        for (labels, evaluation), (same, expected) in zip(run(model, dataset, cells, preprocess=preprocess), alone, strict=True):
            assert labels == same and np.array_equal(evaluation.correct, expected.correct)
            assert evaluation.loss == pytest.approx(expected.loss, rel=1e-6)
        mine = {(threading.get_ident(), 3)}  # the images on which the model is looked at first
        assert len(seen - mine) == min(most, 3) and {threads for _, threads in seen - mine} == {3 // min(most, 3)}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)


def test_between_two_cells_this_process_has_its_threads(three_threads):
    model, dataset, cells = vanilla_cells(3)
    for _ in sweep(model, dataset, cells, progress=False):
        assert torch.get_num_threads() == 3


def test_fewer_images_than_threads(three_threads):
    model, dataset, cells = vanilla_cells(2)
    assert [len(found.correct) for _, found in run(model, dataset, cells, images=[3, 1])] == [2, 2]


@pytest.fixture
def interruptible():
    """Processes that run tests for another ignore an interrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def running():
    return [thread for thread in threading.enumerate() if thread.name.startswith("sweep")]


@pytest.mark.parametrize("happens, error", [(lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt),
                                            (lambda: [][0], ValueError)], ids=["interrupt", "error"])
def test_threads_end_with_the_sweep(happens, error, three_threads, interruptible):
    model, dataset, cells = vanilla_cells(2)
    seen = itertools.count()

    def preprocess(batch):
        if next(seen) == 2:
            happens()
        return batch.permute(0, 3, 1, 2) / 255

    with pytest.raises(error):
        run(model, dataset, cells * 50, preprocess=preprocess)
    deadline = time.monotonic() + 20  # a thread that was being started when the interrupt came is not waited for
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running() and torch.get_num_threads() == 3


def test_threads_end_with_a_sweep_that_is_left(three_threads):
    model, dataset, cells = vanilla_cells(2)
    rows = sweep(model, dataset, cells, progress=False)
    next(rows)
    assert len(running()) == 3
    rows.close()
    assert not running()
