"""Compression to a budget: the ranks that are chosen, what networks have of them before and after training, and the table."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tnlib import CUTS, Cut, conv_kernels, evaluate, factorize, relative_error, truncate
from tnlib.experiments import catalogue, compression, verification
from tnlib.experiments.budgets import Option, by_fraction, by_measurement, by_norm, choose
from tnlib.experiments.catalogue import EXPERIMENTS
from tnlib.experiments.compression import Compression
from tnlib.experiments.datapackage import COLUMNS
from tnlib.experiments.experiment import Experiment, Subject
from tnlib.experiments.measurements import measure
from tnlib.experiments.networks import Recipe
from tnlib.experiments.retraining import Retraining
from tnlib.experiments.tables import read_table
from tnlib.experiments.truncations import cut_truncations
from tnlib.experiments.weights import load_model, read_card

pytestmark = pytest.mark.filterwarnings("ignore:the untruncated network is at chance")
SIZES = {cut.name: cut for cut in CUTS}


@pytest.fixture
def model(small):
    return load_model("vanilla", "small")


@pytest.fixture
def held_out(small, tmp_path, monkeypatch):
    """The path of the tiny network's table "truncation", where experiments look for it."""
    monkeypatch.setattr(catalogue, "FOLDERS", (tmp_path / "results",))
    return measure("truncation", "vanilla", small, progress=False)


@pytest.fixture
def plan(small, model):
    """By a table of costs that are made up, and grow with the error: those of the accuracy in another order than those of the features."""
    cells = pd.DataFrame([labels for labels, _ in cut_truncations(model)])
    cells = cells.assign(accuracy_drop=20 * cells["relative_error"] ** (2 + (cells["layer"] == "conv3")),
                         data_aware_error=cells["relative_error"] * (1 + (cells["layer"] == "conv2")))
    return Compression(Retraining("vanilla", model, small, 0, epochs=2, evaluated=40), cells, "0" * 64)


# ---- which ranks -------------------------------------------------------------------------------------------------

costs = st.integers(0, 6).map(float)
layers_of_options = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.tuples(costs, st.integers(1, 30)), max_size=4)), min_size=1, max_size=4)


@given(layers_of_options, st.integers(1, 60))
def test_no_other_choice_within_the_budget_costs_every_layer_less(drawn, most):
    """Against all choices of all layers, one by one."""
    options = {f"conv{k}": [Option(0.0, whole), *(Option(cost, size, "OUT", 1) for cost, size in others)]
               for k, (whole, others) in enumerate(drawn)}
    fitting = [max(option.cost for option in every) for every in itertools.product(*options.values())
               if sum(option.parameters for option in every) <= most]
    if not fitting:
        with pytest.raises(ValueError, match="has more than .* parameters in its convolutions: give a larger budget"):
            choose(options, most)
        return
    chosen, level = choose(options, most)
    assert level == min(fitting) and sum(option.parameters for option in chosen.values()) <= most
    for layer, option in chosen.items():
        assert option in options[layer] and option.cost <= level
        assert option.parameters == min(other.parameters for other in options[layer] if other.cost <= level)


def test_a_network_within_the_budget_stays_as_it_is(model):
    kernels = conv_kernels(model)
    chosen, level = choose(by_norm(kernels), sum(kernel.numel() for kernel in kernels.values()))
    assert level == 0 and all(option.cut is None and option.parameters == kernels[layer].numel() for layer, option in chosen.items())


def test_the_cost_by_norm_is_the_relative_error_of_the_truncation(model):
    kernels = conv_kernels(model)
    for layer, options in by_norm(kernels).items():
        kernel = kernels[layer]
        assert options[0] == Option(0.0, kernel.numel())
        for option in options[1:]:
            truncated = truncate(kernel.double(), option.cut, option.rank)
            assert option.cost == pytest.approx(relative_error(kernel.double(), truncated).item(), abs=1e-9)
            assert option.parameters == option.rank * sum(SIZES[option.cut].dimensions(kernel.shape)) < kernel.numel()
        assert {option.cut for option in options} > {"OUT", "OUT,KW"}


@pytest.mark.parametrize("cut", ["OUT", "IN", "OUT,IN"])
def test_one_fraction_is_one_fraction_rounded_up(model, cut):
    kernels, cut = conv_kernels(model), Cut.parse(cut)
    chosen, level = choose(by_fraction(kernels, cut), 0.5 * sum(kernel.numel() for kernel in kernels.values()))
    assert 0 < level < 1
    for layer, option in chosen.items():
        rows, columns = cut.dimensions(kernels[layer].shape)
        rank = math.ceil(round((1 - level) * min(rows, columns), 9))
        if rank * (rows + columns) < kernels[layer].numel():
            assert (option.cut, option.rank) == (cut.name, max(1, rank))
        else:
            assert option.cut is None, "as many parameters as the kernel: it stays"


def test_what_was_measured_is_interpolated_and_never_less_than_at_a_higher_rank():
    kernel = torch.ones(20, 10, 3, 3)
    cells = pd.DataFrame({"layer": "conv1", "cut": "OUT", "max_rank": 20, "rank": [16, 12, 8, 4], "accuracy_drop": [-1.0, 2.0, 1.0, 6.0]})
    options = by_measurement({"conv1": kernel}, cells, "accuracy_drop")["conv1"]
    found = {option.rank: option.cost for option in options}
    assert found[None] == 0 and found[16] == 0, "what is gained by chance is not counted on"
    assert [found[rank] for rank in (12, 10, 8)] == [2.0, 2.0, 2.0], "nor that it was less further down"
    assert [found[rank] for rank in (14, 6, 5, 4)] == [1.0, 4.0, 5.0, 6.0]
    assert min(rank for rank in found if rank) == 4, "of lower ranks nothing is known"
    assert 17 not in found, "as many parameters as the kernel"


def test_by_map_every_layer_costs_at_most_the_level_by_its_own_held_out_cell(plan):
    chosen, level = plan.chosen("map", 0.25)
    cells = plan.cells.set_index(["layer", "cut", "rank"])["accuracy_drop"]
    measured = [(layer, option.cut, option.rank) for layer, option in chosen.items() if option.cut]
    assert measured and all(cells[place] <= level + 1e-9 for place in measured if place in cells.index)


@pytest.mark.parametrize("arm, column", [("map", "accuracy_drop"), ("data-aware", "data_aware_error")])
def test_ranks_go_by_the_column_of_the_arm(plan, model, arm, column):
    kernels = conv_kernels(model)
    most = 0.25 * sum(kernel.numel() for kernel in kernels.values())
    ways = {name: choose(by_measurement(kernels, plan.cells, name), most) for name in ("accuracy_drop", "data_aware_error")}
    assert plan.chosen(arm, 0.25) == ways[column] and ways["accuracy_drop"][0] != ways["data_aware_error"][0]


def test_an_unknown_arm_is_refused_and_taken_for_no_other(plan):
    for arm in ("mapp", "Fraction", "NARROWER"):
        with pytest.raises(ValueError, match=f"unknown way to compress '{arm}': it takes 'map', 'fraction'"):
            plan.start(arm, 0.5)


@pytest.mark.parametrize("budget", [0.0, 1.0, -0.5, float("nan"), "0.5"])
def test_a_budget_that_is_no_share_is_refused(plan, budget):
    with pytest.raises(ValueError, match="a budget must be a share of the parameters above 0 and below 1, got"):
        Compression(plan.retraining, plan.cells, plan.table, (0.5, budget))


def test_of_a_kernel_that_is_0_nothing_is_lost_and_what_has_no_cost_is_not_chosen(model):
    kernels = conv_kernels(model) | {"conv2": torch.zeros(5, 4, 3, 3)}
    chosen, level = choose(by_norm(kernels), 0.5 * sum(kernel.numel() for kernel in kernels.values()))
    assert 0 < level < 1 and chosen["conv2"].rank == 1
    cells = pd.DataFrame({"layer": "conv1", "cut": "OUT", "max_rank": 20, "rank": [16, 8], "accuracy_drop": [1.0, float("nan")]})
    options = by_measurement({"conv1": torch.ones(20, 10, 3, 3)}, cells, "accuracy_drop")["conv1"]
    assert min(option.rank for option in options if option.rank) == 16


def test_the_one_cut_is_the_best_of_those_that_fit_on_held_out_images(plan, small, monkeypatch):
    """By accuracies that are given: OUT,KH is best, KW would be and does not fit into an eighth."""
    given_to, asked = {"KW": 0.9, "OUT,KH": 0.8, "IN": 0.7}, []

    def accuracy(model, dataset, split):
        asked.append(split)
        return type("Evaluation", (), {"accuracy": given_to.get(model, 0.1)})

    monkeypatch.setattr(compression, "with_kernels", lambda model, factors: next(iter(factors.values())).cut.name)
    monkeypatch.setattr(compression, "evaluate", accuracy)
    assert {option.cut for option in plan.chosen("fraction", 0.5)[0].values()} - {None} == {"KW"}
    assert {option.cut for option in plan.chosen("fraction", 0.25)[0].values()} - {None} == {"OUT,KH"}
    assert set(asked) == {"validation"}


# ---- the networks ------------------------------------------------------------------------------------------------

def test_ranks_by_map_at_one_cut_are_at_the_cut_of_the_one_fraction(plan):
    (cut,) = {option.cut for option in plan.chosen("fraction", 0.25)[0].values()} - {None}
    chosen, level = plan.chosen("map-one-cut", 0.25)
    assert {option.cut for option in chosen.values()} - {None} == {cut}
    assert level >= plan.chosen("map", 0.25)[1], "fewer options, no lower level"


def test_one_fraction_may_leave_the_first_layer_whole(plan, model):
    """All else at one fraction, rounded up, and as if the budget were without the first layer."""
    (first, kernel), *others = conv_kernels(model).items()
    chosen, level = plan.chosen("fraction-inner", 0.5)
    assert chosen[first] == Option(0.0, kernel.numel()) and level < 1
    (cut,) = {option.cut for option in chosen.values()} - {None}
    most = 0.5 * sum(kernel.numel() for kernel in conv_kernels(model).values()) - kernel.numel()
    assert {layer: chosen[layer] for layer, _ in others} == choose(by_fraction(dict(others), Cut.parse(cut)), most)[0]
    assert plan.chosen("fraction", 0.5)[0][first].cut is not None, "which one fraction for all does not"


def test_one_fraction_may_leave_the_first_layer_whole_and_keep_to_the_cut_of_one_for_all(plan, model, monkeypatch):
    """By accuracies that are given: OUT,KH is best where all layers are truncated, IN where the first is not."""
    (first, kernel), *others = conv_kernels(model).items()
    most = 0.5 * sum(kernel.numel() for kernel in conv_kernels(model).values())
    given_to = {(True, "OUT,KH"): 0.8, (False, "IN"): 0.9}
    monkeypatch.setattr(compression, "with_kernels", lambda model, factors: (first in factors, next(iter(factors.values())).cut.name))
    monkeypatch.setattr(compression, "evaluate", lambda way, dataset, split: type("Evaluation", (), {"accuracy": given_to.get(way, 0.1)}))
    cuts = lambda arm: {option.cut for option in plan.chosen(arm, 0.5)[0].values()} - {None}
    assert cuts("fraction") == {"OUT,KH"} and cuts("fraction-inner") == {"IN"}
    chosen, level = plan.chosen("fraction-inner-one-cut", 0.5)
    assert chosen[first] == Option(0.0, kernel.numel()) and level < 1
    assert {layer: chosen[layer] for layer, _ in others} == choose(by_fraction(dict(others), Cut.parse("OUT,KH")), most - kernel.numel())[0]


@pytest.mark.parametrize("arm", ["map", "norm", "data-aware", "fraction", "fraction-inner", "map-one-cut", "fraction-inner-one-cut"])
@pytest.mark.parametrize("budget", [0.5, 0.25])
def test_a_compressed_network_has_as_many_parameters_as_its_labels_say_and_the_budget_allows(plan, model, arm, budget):
    module, labels = plan.start(arm, budget)
    whole, kernels = conv_kernels(model), conv_kernels(module)
    count = lambda module: sum(parameter.numel() for parameter in module.parameters())
    assert count(module) == labels["network_parameters"]
    assert labels["network_parameters"] - labels["parameters"] == count(model) - sum(kernel.numel() for kernel in whole.values())
    assert labels["parameters"] <= budget * sum(kernel.numel() for kernel in whole.values())
    for layer, cut, rank in zip(whole, labels["cuts"].split(), labels["ranks"].split(), strict=True):
        expected = whole[layer] if cut == "-" else truncate(whole[layer], cut, int(rank))
        torch.testing.assert_close(kernels[layer], expected, atol=1e-6, rtol=1e-5)
    lost = sum((whole[layer] - kernels[layer]).square().sum() for layer in whole) / sum(kernel.square().sum() for kernel in whole.values())
    assert labels["relative_error"] == pytest.approx(lost.sqrt().item(), abs=1e-6)
    assert labels["channels"] == "4 5 6 7"


@pytest.mark.parametrize("budget", [0.5, 0.25, 0.125])
def test_a_narrower_network_is_the_widest_that_fits(plan, model, budget):
    module, labels = plan.start("narrower", budget)
    most = budget * sum(kernel.numel() for kernel in conv_kernels(model).values())
    size = lambda channels: sum(9 * a * b for a, b in zip((3, *channels), channels))
    assert labels["parameters"] == sum(kernel.numel() for kernel in conv_kernels(module).values()) <= most
    widths = [[max(1, round(count * width / compression.WIDTHS)) for count in (4, 5, 6, 7)] for width in range(1, compression.WIDTHS)]
    assert size(max((of for of in widths if size(of) <= most), key=size)) == labels["parameters"]
    assert labels["network_parameters"] == sum(parameter.numel() for parameter in module.parameters())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(module.named_buffers())[name]), "it sees images as the network does"
    assert "norm_kept" not in labels


def test_a_budget_that_nothing_fits_into_is_refused(plan):
    for arm in ("map", "fraction", "narrower"):
        with pytest.raises(ValueError, match="give a larger budget"):
            plan.start(arm, 1e-4)


def test_the_rank_stays_and_training_is_the_re_trainings_own(plan, small):
    rows = list(plan.run("norm", 0.25))
    assert [labels["epoch"] for labels, _ in rows] == [0, 1, 2]
    module, labels = plan.start("norm", 0.25)
    training = plan.training(module, "norm")
    assert training.recipe == plan.retraining.recipe and training.draws == plan.retraining.training(module, "kept").draws
    for epoch in range(2):
        training(epoch)
        assert np.array_equal(evaluate(module, small).correct, rows[epoch + 1][1].correct)
    for (layer, kernel), cut, rank in zip(conv_kernels(module).items(), labels["cuts"].split(), labels["ranks"].split()):
        if cut != "-":
            assert torch.linalg.matrix_rank(Cut.parse(cut).matricize(kernel.double()), rtol=1e-5) == int(rank), layer


def test_a_narrower_network_is_trained_for_as_many_epochs_in_all(plan, monkeypatch):
    trained, seeds = [], []
    monkeypatch.setattr(compression, "Training", lambda module, dataset, recipe, draws, device: seeds.append(draws) or trained.append(recipe) or trained.append)
    ((labels, _),) = plan.run("narrower", 0.25)
    recipe, *epochs = trained
    assert seeds == [plan.parameters()["seeds"]["narrower_batches"]] == [0]
    assert recipe == Recipe(epochs=Recipe().epochs + 2) and epochs == list(range(26)) and labels["epoch"] == 2


def test_multiplications_are_those_that_torch_counts(model):
    """Of the dense network, where a multiplication and an addition are two; with a 1×1 and a 3×1 factor by hand."""
    image, kernels = torch.zeros(1, 3, 16, 16), conv_kernels(model)
    with FlopCounterMode(display=False) as counter:
        model(image)
    convolutions = sum(count for name, count in counter.get_flop_counts()["Global"].items() if "conv" in str(name))
    assert compression.multiplications(model, kernels, 16) == convolutions / 2
    factors = kernels | {"conv2": factorize(kernels["conv2"], "OUT", 2)}
    for wrong, message in (({"conv9": kernels["conv1"]}, "unknown layer 'conv9'"), ({}, "layers is empty")):
        with pytest.raises(ValueError, match=message):
            compression.multiplications(model, wrong, 16)
    with pytest.raises(ValueError, match="image_size must be a whole number of at least 1, got '32'"):
        compression.multiplications(model, kernels, "32")
    saved = 8 * 8 * (9 * 4 * 5 - (9 * 4 * 2 + 2 * 5))
    assert compression.multiplications(model, kernels, 16) - compression.multiplications(model, factors, 16) == saved


# ---- the table ---------------------------------------------------------------------------------------------------

def test_a_table_of_all_arms_and_what_it_was_made_of(small, held_out, tmp_path, monkeypatch):
    entry, kept = EXPERIMENTS["compression"], EXPERIMENTS["compression"].runs
    shorter = lambda its: Compression(Retraining(its.name, its.model, its.dataset, its.seed, epochs=1, evaluated=40), kept(its).cells,
                                      kept(its).table, (0.25,))
    monkeypatch.setitem(EXPERIMENTS, "compression", Experiment(None, entry.key, runs=shorter))
    assert set(kept(Subject("vanilla", load_model("vanilla", "small"), small, 0)).cells["split"]) == {"validation"}, "of test images nothing"
    path = measure("compression", "vanilla", small, progress=False)
    table, card = read_table(path), read_card(path)
    assert set(table.columns) <= set(COLUMNS)
    assert list(zip(table["arm"], table["budget"], table["epoch"])) == [
        *((arm, 0.25, epoch) for arm in ("map", "fraction", "norm", "data-aware") for epoch in (0, 1)), ("narrower", 0.25, 1),
        *((arm, 0.25, epoch) for arm in ("map-one-cut", "fraction-inner", "fraction-inner-one-cut") for epoch in (0, 1))]
    assert card["parameters"]["truncation"] == read_card(held_out)["sha256"], "by which table ranks were chosen"
    assert card["parameters"]["recipe"]["epochs"] == 1 and card["parameters"]["narrower_recipe"]["epochs"] == Recipe().epochs + 1
    assert "training_precision" in card
    narrower = table[table["arm"] == "narrower"]
    assert narrower[["level", "norm_kept", "relative_error"]].isna().all(axis=None)
    monkeypatch.setattr(verification, "PUBLISHED", tmp_path)
    monkeypatch.setattr(verification, "load_dataset", lambda name, root=None: small)
    checks = verification.verify(100, experiment="compression")
    assert {check.key: check.images for check in checks} == {
        **{f"test arm={arm} budget=0.25 epoch=0": len(small.test_labels) for arm in ("map", "fraction", "norm", "data-aware", "map-one-cut", "fraction-inner",
                                                                                                       "fraction-inner-one-cut")},
        "test arm=narrower budget=0.25 epoch=1": 0}
    assert all(check.different == 0 and check.deviation < 1e-6 for check in checks)
    monkeypatch.setattr(verification, "read_table", lambda path: table.assign(channels="4 5 6 7"))
    other = {check.key: check.deviation for check in verification.verify(100, experiment="compression")}
    assert other.pop("test arm=narrower budget=0.25 epoch=1") == math.inf and max(other.values()) < 1e-6


def test_what_ranks_are_chosen_by_has_to_be_there(small, model, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "FOLDERS", (tmp_path / "results",))
    with pytest.raises(FileNotFoundError, match="no table of the truncation of vanilla on small, seed 0, by which ranks are chosen: "
                                                "tnlib measure truncation vanilla small.npz --seed 0"):
        EXPERIMENTS["compression"].runs(Subject("vanilla", model, small, 0))


def test_a_network_without_held_out_cells_or_without_a_list_of_channels_is_refused(plan, monkeypatch):
    with pytest.raises(ValueError, match="has no held-out rows, by which ranks are chosen: it is measured on test images alone"):
        Compression(plan.retraining, plan.cells.iloc[:0], plan.table)
    with pytest.raises(ValueError, match="truncations has no held-out rows of conv2, conv4: measure it again"):
        Compression(plan.retraining, plan.cells[plan.cells["layer"].isin(["conv1", "conv3"])], plan.table)
    plan.retraining.card["architecture"].pop("channels")
    with pytest.raises(ValueError, match="vanilla cannot be made narrower: its width is no list of channels"):
        Compression(plan.retraining, plan.cells, plan.table)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=6), st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=6),
       st.integers(2, 10))
def test_of_options_with_as_many_parameters_the_cheapest_is_taken(one, other, most):
    """As OUT,KW and OUT,KH of one rank have, of any kernel of 3x3."""
    options = {layer: [Option(0.0, 5), *(Option(float(cost), parameters, "OUT", 1) for cost, parameters in given)]
               for layer, given in (("a", one), ("b", other))}
    try:
        chosen, _ = choose(options, most)
    except ValueError:
        return
    for layer, option in chosen.items():
        assert option.cost == min(alike.cost for alike in options[layer] if alike.parameters == option.parameters)
