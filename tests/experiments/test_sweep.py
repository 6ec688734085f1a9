"""The sweep against the plain way, image by image; that nothing is computed twice; and what it refuses."""

import contextlib
import copy
import threading
import types
import warnings
import weakref
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.experiments.sweep_cases import MODELS, cells_of, model_and_data, noisy, run, swapped, vanilla_cells
import tnlib
from tnlib import Dataset, conv_kernels, evaluate, factorize, load_dataset, load_model, sweep
from tnlib.experiments import sweep as sweep_module
from tnlib.experiments import workers as workers_module
from tnlib.experiments.convolution import Convolution
from tnlib.experiments.evaluation import to_unit_floats
from tnlib.experiments.graph import NetworkGraph
from tnlib.experiments.store import Store
from tnlib.experiments.tracing import alike, traced
from tnlib.experiments.truncations import cut_truncations

TIES = 2 / 10_000  # images that may be answered otherwise, for two logits are equal to rounding


# ---- exactness ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", MODELS)
def test_against_the_weight_swapped_and_the_whole_network_run(name):
    model, dataset = model_and_data(name)
    cells = cells_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is traced
        warnings.filterwarnings("ignore", "'auxiliary': not called in eval mode")
        found = run(model, dataset, cells)
    assert [labels for labels, _ in found] == [labels for labels, _ in cells]
    assert found[0][1].accuracy == 1
    differ, changed = 0, 0
    for (_, evaluation), (_, kernels) in zip(found, cells):
        expected = swapped(model, dataset, kernels)
        differ += (evaluation.correct != expected.correct).sum()
        changed += (~expected.correct).sum()
        assert evaluation.loss == pytest.approx(expected.loss, rel=1e-4)
    assert changed > 50  # the replacements matter, and each in its own way
    assert differ <= TIES * len(cells) * len(dataset.test_labels)


def test_the_published_network_on_its_images():
    model, shapes = load_model("vanilla", "shapes"), load_dataset("shapes")
    chosen = shapes.subset(1000)
    dataset = Dataset(shapes.test_images[chosen], shapes.test_labels[chosen])
    cells = [({}, {layer: noisy(kernel, 1.5)}) for layer, kernel in conv_kernels(model).items()]
    differ = sum((evaluation.correct != swapped(model, dataset, kernels).correct).sum()
                 for (_, evaluation), (_, kernels) in zip(run(model, dataset, cells), cells))
    assert differ <= TIES * 4 * len(dataset.test_labels)


@pytest.mark.parametrize("name", ["branches", "grouped"])
def test_what_is_left_by_one_cell_does_not_reach_the_next(name):
    model, dataset = model_and_data(name)
    cells = cells_of(model)
    forwards = {labels["cell"]: evaluation for labels, evaluation in run(model, dataset, cells)}
    for labels, evaluation in run(model, dataset, [*cells[::-1], cells[0]]):
        if "size" not in labels or labels["size"] == 1.5:
            assert np.array_equal(evaluation.correct, forwards[labels["cell"]].correct)
            assert evaluation.loss == forwards[labels["cell"]].loss


def test_a_class_that_is_masked_out_is_one_that_is_not_answered():
    """−∞ for a class is an answer among the others, in a sweep as in `evaluate`; and the trace is held against it."""
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0]))

        def forward(self, image):
            return self.linear(self.conv(image).relu().mean((2, 3))) + self.mask

    torch.manual_seed(0)
    model, random = Masked().eval(), np.random.RandomState(0)
    dataset = Dataset(random.randint(0, 256, (60, 8, 8, 3)).astype(np.uint8), np.arange(60) % 3)
    expected = evaluate(model, dataset)
    ((_, found),) = run(model, dataset, [({}, {"conv": model.conv.weight.detach()})])
    assert np.array_equal(found.correct, expected.correct) and 0 < expected.correct.sum() < 60
    assert found.loss == expected.loss == np.inf
    logits = torch.tensor([[1.0, -torch.inf], [2.0, -torch.inf]])
    assert alike(logits.clone(), logits) and not alike(logits + 0.1, logits) and not alike(logits.nan_to_num(), logits)


def test_a_preprocess_that_writes_into_its_batch_leaves_the_images_as_they_are():
    def inverted(batch):
        batch.bitwise_not_()
        return to_unit_floats(batch)

    model, dataset = model_and_data("branches")
    before = dataset.test_images.copy()
    expected = evaluate(model, dataset, inverted)
    ((_, found),) = run(model, dataset, [({}, {})], preprocess=inverted)
    assert np.array_equal(dataset.test_images, before) and np.array_equal(found.correct, expected.correct)


def test_nan_is_no_answer():
    """The largest of NaN is the first class, which here would be right."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    dataset = Dataset(np.full((20, 8, 8, 3), 200, np.uint8), np.zeros(20, np.int64))
    nn.init.ones_(model[0].weight)  # positive before the altered kernel, which makes them infinite, whatever was drawn
    ((_, found),) = run(model, dataset, [({}, {"2": torch.full((4, 4, 3, 3), 3e38)})])
    assert not found.correct.any() and np.isnan(found.loss)


class Writing(nn.Module):
    """Writes into a part of a value that is used whole, or twice with one module."""

    def __init__(self, part):
        super().__init__()
        self.conv, self.relu, self.last, self.part = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Linear(8, 3), part

    def forward(self, x):
        x = self.conv(x)
        if self.part:
            x[:, :4].clamp_(-0.1, 0.1)
        else:
            self.relu(x)
            x = x - 0.2
            self.relu(x)
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("part", [True, False])
def test_what_is_written_in_place_is_seen_by_all_that_read_it(part):
    """Also where it makes no difference on the images that the graph is tried on."""
    model, random = Writing(part), np.random.RandomState(0)
    images = np.concatenate([np.full((1, 8, 8, 3), 127), random.randint(0, 256, (18, 8, 8, 3)), np.full((1, 8, 8, 3), 127)]).astype(np.uint8)
    dataset = Dataset(images, np.arange(20) % 3)
    nn.init.zeros_(model.conv.bias)
    with torch.no_grad():
        model.conv.weight[:] -= model.conv.weight.mean((1, 2, 3), keepdim=True)  # an even image gives zero
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ((_, found),) = run(model, dataset, [({}, {})])
    assert found.loss == pytest.approx(evaluate(model, dataset).loss, rel=1e-6)
    assert [str(warning.message)[:33] for warning in seen] == ["Writing cannot be traced and is r"] * part


def test_nan_in_a_buffer_and_what_cannot_be_copied_are_named():
    model, dataset = model_and_data("resnet18")
    model = copy.deepcopy(model)
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).running_mean[0] = float("nan")
    with pytest.raises(ValueError, match="the model's bn1.running_mean holds NaN"):
        run(model, dataset, [({}, {})])
    model, dataset, cells = vanilla_cells(1)
    (model := copy.deepcopy(model)).lock = threading.Lock()
    with pytest.raises(ValueError, match="Vanilla cannot be copied, and so not be swept: cannot pickle"):
        run(model, dataset, cells)


def test_a_layer_that_eval_mode_never_calls_changes_nothing_and_a_warning_says_so():
    model, dataset = model_and_data("misnamed")
    kernel = conv_kernels(model)["auxiliary"]
    with pytest.warns(UserWarning, match="^'auxiliary': not called in eval mode") as said:
        (_, whole), (_, found), _ = run(model, dataset, [({}, {}), ({}, {"auxiliary": 2 * kernel}), ({}, {"auxiliary": 3 * kernel})])
    assert len(said) == 1
    assert np.array_equal(whole.correct, found.correct) and whole.loss == found.loss
    with pytest.warns(UserWarning, match="^'auxiliary': not called in eval mode"):
        swept = tnlib.truncation_sweep(model, dataset, cuts=["OUT"], ranks=[1])
    assert set(swept["layer"]) == {"add", "skip", "last", "masked", "auxiliary"}
    with pytest.warns(UserWarning, match="^'auxiliary': not called in eval mode"):
        run(model, dataset, [({}, {"last": conv_kernels(model)["last"], "auxiliary": kernel})])


def test_in_inference_mode_it_is_traced_as_elsewhere():
    model, dataset, cells = vanilla_cells(2)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("error")
        found = run(model, dataset, cells)
    assert [evaluation.loss for _, evaluation in found] == [evaluation.loss for _, evaluation in run(model, dataset, cells)]


def test_on_a_single_image():
    model, dataset, cells = vanilla_cells(3)
    expected, found = (list(tnlib.sweep(model, dataset, cells, images=images, progress=False)) for images in (range(len(dataset.test_labels)), [7]))
    assert [evaluation.correct.tolist() for _, evaluation in found] == [[evaluation.correct[7]] for _, evaluation in expected]


def test_whatever_the_default_dtype():
    model, dataset, cells = vanilla_cells(2)
    expected = run(model, dataset, cells)
    torch.set_default_dtype(torch.float64)
    try:
        found = run(model, dataset, cells)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [evaluation.loss for _, evaluation in found] == [evaluation.loss for _, evaluation in expected]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_whatever_the_default_dtype_weights_are_loaded_as_they_are(dtype):
    expected = load_model("vanilla", "shapes").state_dict()
    torch.set_default_dtype(dtype)
    try:
        found = load_model("vanilla", "shapes").state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        elsewhere = load_model("vanilla", "shapes").state_dict()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype and torch.equal(tensor, found[name]) and torch.equal(tensor, elsewhere[name])


def test_two_threads_sweep_at_once():
    """While one is traced, torch takes the calls of modules in the whole process."""
    (deep, images), (model, dataset, cells) = model_and_data("resnet18"), vanilla_cells(3)
    (expected,) = {tuple(evaluation.loss for _, evaluation in run(model, dataset, cells))}
    with warnings.catch_warnings(), ThreadPoolExecutor(2) as pool:
        warnings.simplefilter("error")
        tracing = pool.submit(lambda: [run(deep, images, [({}, {})]) for _ in range(3)])
        while not tracing.done():
            assert tuple(evaluation.loss for _, evaluation in run(model, dataset, cells)) == expected
        tracing.result()


@pytest.mark.parametrize("name", ["written", "choosing"])
def test_a_model_that_cannot_be_traced_runs_whole_with_one_warning(name):
    model, dataset = model_and_data(name)
    kernel = conv_kernels(model)["conv"]
    cells = [({}, {}), ({}, {"conv": noisy(kernel)}), ({}, {"conv": 2 * kernel})]
    with pytest.warns(UserWarning, match="cannot be traced and is run whole") as caught:
        found = run(model, dataset, cells)
    assert len(caught) == 1
    for (_, evaluation), (_, kernels) in zip(found, cells):
        assert np.array_equal(evaluation.correct, swapped(model, dataset, kernels).correct)


def test_the_model_is_left_as_it_is():
    model, dataset = model_and_data("branches")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model.relu.eval()
    run(model, dataset, cells_of(model))
    assert model.training and not model.relu.training and model.relu.inplace
    model.eval()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_preprocess_split_and_images():
    random = np.random.RandomState(0)
    arrays = {f"{split}_images": random.randint(0, 256, (n, 32, 32, 3)).astype(np.uint8)
              for split, n in (("train", 200), ("test", 30))}
    arrays |= {f"{split}_labels": np.arange(n) % 10 for split, n in (("train", 200), ("test", 30))}
    model, dataset = model_and_data("grouped")[0], Dataset(**arrays)
    darker = lambda batch: batch.permute(0, 3, 1, 2) / 510
    (_, found), = run(model, dataset, [({}, {})], preprocess=darker, split="validation")
    expected = evaluate(model, dataset, darker, split="validation")
    assert np.array_equal(found.correct, expected.correct) and found.loss == pytest.approx(expected.loss, rel=1e-5)
    chosen = np.array([17, 3, 3, 29])
    (_, found), = run(model, dataset, [({}, {})], images=chosen)
    assert np.array_equal(found.correct, evaluate(model, dataset).correct[chosen])


# ---- nothing twice, little at once -------------------------------------------------------------------------------

@pytest.fixture
def small_batches(monkeypatch):
    """Batches of 32 images, and a limit of kept values that all images of a test are above."""
    monkeypatch.setattr(workers_module, "BATCH_BYTES", 1)


@pytest.fixture
def calls(monkeypatch):
    """How many images went through each convolution, by its kernel's shape."""
    counted, forward = {}, Convolution.forward

    def count(self, image, *other):
        shape = tuple(self.kernel.shape)
        counted[shape] = counted.get(shape, 0) + len(image)
        return forward(self, image, *other)

    monkeypatch.setattr(Convolution, "forward", count)
    return counted


def images_through(calls):
    return [count for _, count in sorted(calls.items(), key=lambda item: item[0][0])]  # by OUT: conv1 to conv4


@pytest.mark.parametrize("batches", ["whole", "small"])
def test_what_comes_before_is_computed_once(calls, request, batches):
    if batches == "small":
        request.getfixturevalue("small_batches")
    model, dataset, cells = vanilla_cells()
    run(model, dataset, cells)
    assert images_through(calls) == [202, 202, 1002, 1002]  # two images more, to see how large the values are


def test_once_for_every_group_where_the_kept_values_do_not_fit(calls, monkeypatch):
    monkeypatch.setattr(sweep_module, "KEPT_BYTES", 1)
    monkeypatch.setattr(sweep_module, "UNIT_CELLS", 3)
    model, dataset, cells = vanilla_cells(5)
    found = run(model, dataset, cells)
    assert images_through(calls) == [402, 402, 1002, 1002]  # groups of three and of two cells
    monkeypatch.undo()
    for (labels, evaluation), (same, expected) in zip(found, run(model, dataset, cells)):
        assert labels == same and np.array_equal(evaluation.correct, expected.correct)


class ReadsItsWeight(nn.Module):
    """Takes the kernel in another way than as an attribute of its layer, so that a trace would hold it fast."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 16, 3), nn.Linear(16, 10)

    def forward(self, image):
        kernel = self.conv.state_dict()["weight"]
        kernel = kernel / kernel.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return 10 * self.linear(F.relu(F.conv2d(image, kernel, self.conv.bias)).mean((2, 3)))


class Plain(ReadsItsWeight):
    masked = 0.0

    def forward(self, image):
        scores = self.linear(F.relu(self.conv(image)).mean((2, 3)))
        return torch.cat([scores[:, :9], scores[:, 9:] - self.masked], 1)


class OnlyAConvolution(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 10, 16)

    def forward(self, image):
        return super().forward(image).flatten(1)


def hooked(masked=0.0):
    """Answers otherwise to dark images, of which the two that are looked at need not be; with a class that is masked."""
    model = Plain()
    model.masked = masked
    model.register_forward_hook(lambda module, inputs, scores: torch.where((inputs[0].mean((1, 2, 3)) < 0.5)[:, None], scores.roll(1, 1), scores))
    return model


def patched():
    model = Plain()
    model.conv.forward = types.MethodType(lambda layer, image: 2 * nn.Conv2d.forward(layer, image), model.conv)
    return model


def of_numbers():
    model = Plain()
    model.conv.stride, model.conv.padding = 2, 1
    return model


ODD = {"reads its weight": ReadsItsWeight, "only a convolution": OnlyAConvolution, "a hook of its own": hooked, "a masked class": lambda: hooked(1e9),
       "a patched layer": patched, "numbers for pairs": of_numbers}


@pytest.mark.filterwarnings("ignore:.*cannot be traced")
@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_odd_models_answer_as_with_the_weight_swapped(make):
    torch.manual_seed(0)
    model, random = make().eval(), np.random.RandomState(0)
    dataset = Dataset(random.randint(0, 256, (60, 16, 16, 3)).astype(np.uint8), np.arange(60) % 9)
    ((layer, kernel),) = tnlib.conv_kernels(model).items()
    other = torch.randn(kernel.shape)
    found = [evaluation for _, evaluation in sweep(model, dataset, [({}, {}), ({}, {layer: other})], progress=False)]
    expected = [tnlib.evaluate(model, dataset)]
    model.get_submodule(layer).weight.data = other
    expected.append(tnlib.evaluate(model, dataset))
    for ours, plain in zip(found, expected):
        assert np.array_equal(ours.correct, plain.correct) and ours.loss == pytest.approx(plain.loss, rel=1e-5)
    assert abs(found[0].loss - found[1].loss) > 1e-3


def test_the_bar_moves_before_a_group_has_ended(monkeypatch, capfd):
    """Of a deep network on a CPU that takes half an hour."""
    monkeypatch.setattr(sweep_module, "KEPT_BYTES", 1)
    monkeypatch.setattr(workers_module, "UNIT_IMAGES", 64)
    model, dataset, cells = vanilla_cells(3)
    with ThreadPoolExecutor(1) as executor:
        list(sweep(model, dataset, cells, executor))
    said = capfd.readouterr().err
    assert all(f"of the next 3 part {k} of 7]" in said for k in range(1, 7)) and "part 7" not in said and "3/3" in said


@pytest.mark.parametrize("executor", [None, ThreadPoolExecutor], ids=["here", "executor"])
def test_what_a_sweep_that_was_cut_off_has_found_on_part_of_the_images_is_not_evaluated_again(calls, executor, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "KEPT_BYTES", 1)
    monkeypatch.setattr(workers_module, "UNIT_IMAGES", 64)
    model, dataset, cells = vanilla_cells(3)
    cells = [({"key": f"cell {labels['k']}"}, kernels) for labels, kernels in cells]
    whole, through = run(model, dataset, cells), images_through(calls)
    store, add_parts = Store(tmp_path / "kept.sqlite", {}), Store.add_parts

    def cut_off(self, group, images, *found):
        if images.start == 128:
            raise KeyboardInterrupt
        add_parts(self, group, images, *found)

    def sweep_again(cells):
        calls.clear()
        with contextlib.ExitStack() as stack:
            return run(model, dataset, cells, stack.enter_context(executor(1)) if executor else None, units=store)

    with monkeypatch.context() as meanwhile, pytest.raises(KeyboardInterrupt):
        meanwhile.setattr(Store, "add_parts", cut_off)
        sweep_again(cells)
    for (labels, found), (same, expected) in zip(sweep_again(cells), whole, strict=True):
        assert labels == same and np.array_equal(found.correct, expected.correct) and found.loss == pytest.approx(expected.loss, rel=1e-9)
    probes = images_through(calls)[0] - 72  # 200 images: two units of 64 are there, the third and the rest are not
    assert images_through(calls) == [probes + 72, probes + 72, probes + 216, probes + 216] and probes < 10
    assert through == [202, 202, 602, 602]
    sweep_again(cells[:2])  # in another group
    assert images_through(calls)[0] <= probes
    store.add(("cell 0", 0, {}, whole[0][1].correct, whole[0][1].loss))
    sweep_again(cells)
    assert images_through(calls)[0] == probes + 200, "parts go with the cell that they are of"


def test_groups_are_bounded_by_their_kernels_bytes(monkeypatch):
    monkeypatch.setattr(sweep_module, "KEPT_BYTES", 1)
    monkeypatch.setattr(sweep_module, "KERNEL_BYTES", 3 * 128 * 64 * 9 * 4 + 1)
    model, dataset, cells = vanilla_cells(7)
    drawn, after = [], []
    for labels, _ in sweep(model, dataset, (drawn.append(cell) or cell for cell in cells), progress=False):
        after.append(len(drawn))
    assert after == [4, 4, 4, 7, 7, 7, 7]  # three kernels at a time, and the one that did not fit


def test_cells_come_one_by_one_and_are_asked_for_one_by_one():
    model, dataset, cells = vanilla_cells(4)
    drawn = []
    results = sweep(model, dataset, (drawn.append(cell) or cell for cell in cells), progress=False)
    assert len(drawn) == 1  # the first was looked at: are there any?
    for k, (labels, _) in enumerate(results):
        assert labels == {"k": k} and len(drawn) <= k + 2


class Chain(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(length))

    def forward(self, image):
        for conv in self.convs:
            image = torch.tanh(conv(image))
        return image.mean((2, 3))


@pytest.mark.parametrize("kept_bytes, workers", [(2**31, None), (1, None), (2**31, 2)], ids=["kept", "in-groups", "threads"])
def test_a_generator_may_write_into_one_kernel_and_one_dict(monkeypatch, kept_bytes, workers):
    """As who prunes filter after filter does: each answer is that of the kernel as it was when it was given."""
    monkeypatch.setattr(sweep_module, "KEPT_BYTES", kept_bytes)
    model, dataset = model_and_data("vanilla")
    own, counts = conv_kernels(model)["conv3"], (0, 64, 120, 127)

    def pruned():
        kernel, labels = own.clone(), {}
        for count in counts:
            kernel[:count], labels["zero"] = 0, count
            yield labels, {"conv3": kernel}

    with contextlib.nullcontext() if workers is None else ThreadPoolExecutor(workers) as executor:
        found = run(model, dataset, pruned(), executor=executor)
    assert [labels["zero"] for labels, _ in found] == list(counts)
    for count, (_, evaluation) in zip(counts, found):
        expected = swapped(model, dataset, {"conv3": torch.cat([torch.zeros_like(own[:count]), own[count:]])})
        assert evaluation.loss == pytest.approx(expected.loss, rel=1e-4)
    assert len({evaluation.loss for _, evaluation in found}) == len(counts)


def test_a_generator_may_write_into_the_factors_that_it_gave():
    model, dataset = model_and_data("vanilla")
    factors = factorize(conv_kernels(model)["conv3"], "OUT,KW", 30)

    def scaled():
        for power in range(3):
            yield {"power": power}, {"conv3": factors}
            factors.factors[0].mul_(0.5)

    found = run(model, dataset, scaled())
    for power, (_, evaluation) in enumerate(found):
        expected = swapped(model, dataset, {"conv3": factorize(conv_kernels(model)["conv3"], "OUT,KW", 30).to_kernel() * 0.5 ** power})
        assert evaluation.loss == pytest.approx(expected.loss, rel=1e-4)
    assert len({evaluation.loss for _, evaluation in found}) == 3


@pytest.mark.parametrize("kept_bytes, workers", [(2**31, None), (1, None), (2**31, 2)], ids=["kept", "in-groups", "threads"])
def test_what_was_evaluated_before_a_generator_raises_is_yielded(monkeypatch, kept_bytes, workers):
    monkeypatch.setattr(sweep_module, "KEPT_BYTES", kept_bytes)
    model, dataset, cells = vanilla_cells(3)

    def broken():
        yield from cells
        raise KeyError("conv5")

    found = []
    with contextlib.nullcontext() if workers is None else ThreadPoolExecutor(workers) as executor:
        with pytest.raises(KeyError, match="conv5"):
            for cell in sweep(model, dataset, broken(), executor, progress=False):
                found.append(cell)
    whole = run(model, dataset, cells)
    assert [labels for labels, _ in found] == [labels for labels, _ in whole]
    assert all(np.array_equal(one.correct, other.correct) for (_, one), (_, other) in zip(found, whole))


class Subtracting(nn.Module):
    """Reads the bias of a convolution beside calling it, behind a batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head((torch.relu(self.norm(self.conv(x))) - self.conv.bias.view(1, -1, 1, 1)).mean((2, 3)))


def test_a_bias_that_is_read_by_itself_is_the_convolutions_own():
    model = Subtracting().eval()
    model.norm.running_mean.normal_(), model.norm.running_var.uniform_(0.5, 2)
    dataset = Dataset(np.random.RandomState(0).randint(0, 256, (40, 8, 8, 3)).astype(np.uint8), np.arange(40) % 3)
    kernel = noisy(model.conv.weight.detach(), 1.0)
    ((_, found),) = run(model, dataset, [({}, {"conv": kernel})])
    expected = swapped(model, dataset, {"conv": kernel})
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_values_are_freed_after_their_last_use(monkeypatch):
    alive, most, forward = weakref.WeakSet(), [], Convolution.forward

    def counted(self, image, *other):
        value = forward(self, image, *other)
        alive.add(value)
        most.append(len(alive))
        return value

    monkeypatch.setattr(Convolution, "forward", counted)
    image = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        network = NetworkGraph(traced(Chain(12).eval(), image), image)
        split = network.split(network.reached(["convs.6"]))
        del most[:]
        kept = split.before(image)
        assert len(kept) == 1
        split.after(*kept)
    assert most == [1] * 12


def test_the_bytes_of_a_split():
    model = Chain(4).eval()
    probe = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        network = NetworkGraph(traced(model, probe), probe)
    split = network.split(network.reached(["convs.2"]))
    one = 3 * 8 * 8 * 4
    assert split.kept_bytes == one and split.peak_bytes == 2 * one


def test_parallel_branches_that_a_layer_does_not_reach_are_kept(calls):
    model, dataset = model_and_data("branches")
    run(model, dataset, [({}, {"left": noisy(conv_kernels(model)["left"], seed=k)}) for k in range(4)])
    assert calls[(8, 8, 1, 1)] == 802 and calls[(8, 8, 3, 3)] == 202  # left four times, right once


# ---- the bar -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("known, shown", [(True, "3/3"), (False, "3cell")])
def test_the_bar_counts_cells(capsys, known, shown):
    model, dataset, cells = vanilla_cells(3)
    list(sweep(model, dataset, cells if known else iter(cells)))
    assert shown in capsys.readouterr().err
    run(model, dataset, cells)
    assert capsys.readouterr().err == ""


# ---- bad input ---------------------------------------------------------------------------------------------------

def bad(replacements=None, model=None, dataset=None, **options):
    vanilla, images = model_and_data("vanilla")
    return lambda: sweep(model or vanilla, dataset or images,
                         [({}, {})] if replacements is None else replacements, **options)


def small(*convolutions):
    """A network of 3×3 convolutions that keep the size."""
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)).eval()


class Asserting(nn.Module):
    def forward(self, image):
        torch._assert(image is None, "mine")


conv = lambda: nn.Conv2d(3, 3, 3, padding=1)
asserting, tied = small(conv(), Asserting()), small(conv(), conv())
tied[1].weight = tied[0].weight
of_its_batch = small(conv(), nn.BatchNorm2d(3, track_running_stats=False))
parametrised = small(conv(), nn.utils.parametrizations.weight_norm(conv()))
KERNEL = torch.zeros(32, 3, 3, 3)
LARGE = Dataset(np.zeros((2, 48, 48, 3), dtype=np.uint8), [0, 1])
with_nan = small(conv(), conv())
with_nan[1].bias.data[2] = np.nan
NAN = KERNEL.clone()
NAN[3, 1, 0, 2] = np.nan
MANY = Dataset(np.zeros((2, 32, 32, 3), dtype=np.uint8), [0, 40])
class Squeezing(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = small(conv())

    def forward(self, image):
        return self.network(image).squeeze()


BAD = {
    "squeezed": (bad(model=Squeezing().eval(), images=[3]), r"the model returned \(10,\) for a batch of 1 images"),
    "layer": (bad([({}, {}), ({}, {"conv9": KERNEL})]), "unknown layer 'conv9': the model's convolutions are 'conv1'"),
    "shape": (bad([({}, {"conv1": KERNEL[:4]})]), r"kernel of 'conv1' must be torch.float32 \(32, 3, 3, 3\), got"),
    "dtype": (bad([({}, {"conv1": KERNEL.double()})]), "got torch.float64"),
    "nan": (bad([({}, {}), ({}, {"conv1": NAN})]), "the kernel of 'conv1' holds NaN or infinity"),
    "model's nan": (bad(model=with_nan), "the model's 1.bias holds NaN or infinity"),
    "no data set": (bad(dataset="shapes"), "dataset must be a tnlib.Dataset, as load_dataset gives one, got 'shapes'"),
    "preprocess": (bad(executor=ProcessPoolExecutor(1), preprocess=lambda images: images / 255),
                   "preprocess cannot be handed to other processes .*define it at the top of a module"),
    "no executor": (bad(executor=4), "executor must be a concurrent.futures.Executor or None, got 4"),
    "array": (bad([({}, {"conv1": KERNEL.numpy()})]), "got ndarray"),
    "no kernels": (bad([({}, None)]), r"each of replacements must be \(labels, \{layer: kernel\}\)"),
    "empty": (bad([]), "replacements is empty"),
    "a number": (bad(4), r"replacements must give \(labels, \{layer: kernel\}\) one after another, got 4"),
    "empty iterator": (bad(iter([])), "replacements is empty"),
    "no convolutions": (bad(model=nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))), "Sequential has no Conv2d layers"),
    "size": (bad(dataset=LARGE), r"Vanilla does not take images of shape \(48, 48, 3\)"),
    "classes": (bad(dataset=MANY), "the labels go up to 40, and the model tells 10 classes apart: labels count from 0, so that it needs at least 41"),
    "split": (bad(split="val"), "unknown split 'val'"),
    "no train images": (bad(split="train"), "has no train images"),
    "indices": (bad(images=[0, 200]), "indices from 0 to 199, got 0 to 200"),
    "negative": (bad(images=[-1]), "indices from 0 to 199, got -1"),
    "mask": (bad(images=np.ones(200, dtype=bool)), "must be indices"),
    "no images": (bad(images=[]), "must be indices, at least one"),
    "asserts": (bad(model=asserting), r"Sequential does not take images of shape \(32, 32, 3\).*: mine"),
    "preprocess of batches": (bad(preprocess=lambda images: images / 255 - (images / 255).mean()), "preprocess makes something else of an image alone"),
    "random preprocess": (bad(preprocess=lambda images: torch.rand(images.permute(0, 3, 1, 2).shape)), "preprocess makes something else of an image alone"),
    "preprocess to NaN": (bad(preprocess=lambda images: images.permute(0, 3, 1, 2) / 255 * np.nan), "preprocess makes NaN or infinity of some images"),
    "model on meta": (bad(model=small(conv()).to("meta")), "the model's 0.weight must be on the CPU or on CUDA.* got the device meta"),
    "kernel on meta": (bad([({}, {"conv1": KERNEL.to("meta")})]), "the kernel of 'conv1' must be on the CPU or on CUDA.* got the device meta"),
    "truncated on meta": (lambda: list(cut_truncations(small(conv()).to("meta"))), "the kernel of '0' must be on the CPU or on CUDA"),
    "batch statistics": (bad(model=of_its_batch), "answers to an image alone otherwise than in a batch"),
    "tied": (bad([({}, {"0": torch.zeros(3, 3, 3, 3)})], tied), "the layer '0' shares its weight with another module"),
    "parametrised": (bad(cut_truncations(parametrised), parametrised), "the layer '1' computes its weight"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_anything_runs(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()  # nothing is asked of the generator that a right call returns


def test_a_layer_that_computes_its_weight_is_refused():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 10, 3),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    dataset = Dataset(np.zeros((2, 8, 8, 3), dtype=np.uint8), [0, 1])
    kernels = conv_kernels(model)
    with pytest.raises(ValueError, match="'0' computes its weight"):
        run(model, dataset, [({}, {"0": kernels["0"]})])
    (_, found), = run(model, dataset, [({}, {"1": 2 * kernels["1"]})])
    assert found.loss == pytest.approx(swapped_last(model, dataset, 2 * kernels["1"]), rel=1e-5)


def swapped_last(model, dataset, kernel):
    before = model[1].weight.data
    model[1].weight.data = kernel
    loss = evaluate(model, dataset).loss
    model[1].weight.data = before
    return loss
