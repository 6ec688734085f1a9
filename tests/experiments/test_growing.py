"""Truncations that grow from rank to rank against the plain way; and that each is the same whichever others there are."""

import concurrent.futures

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.experiments.sweep_cases import model_and_data, run, swapped
from tnlib import conv_kernels, factorize, truncate
from tnlib.experiments import growing
from tnlib.experiments.convolution import Convolution
from tnlib.experiments.growing import Growing, can_grow, continues, runs
from tnlib.experiments.truncations import Truncator, cut_truncations, joint_truncations
from tnlib.tensors.cuts import CUTS, Cut

GROWING = ("OUT", "IN", "OUT,KW", "OUT,KH")
RANKS = (1, 3, 4, 7)
# Model → layers that can grow: in vanilla all but the first; strided and followed by batch norm; beside a branch; 1×1.
LAYERS = {"vanilla": ["conv2", "conv4"], "resnet18": ["layer2.0.conv1", "layer2.0.conv2"], "mobilenet_v2": ["features.5.conv.0.0"],
          "branches": ["right"]}


@pytest.fixture
def grown(monkeypatch):
    """The numbers of truncations in the runs that were grown."""
    made, init = [], Growing.__init__
    monkeypatch.setattr(Growing, "__init__", lambda self, layer, run: made.append(len(run)) or init(self, layer, run))
    monkeypatch.setattr(growing, "LEAST_MULTIPLICATIONS", 30)
    return made


# ---- exactness ---------------------------------------------------------------------------------------------------

@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_layer_gives_what_the_truncated_kernel_gives(data):
    draw = lambda *values: data.draw(st.sampled_from(values))
    size, bias, cut = draw(1, 2, 3), draw(True, False), draw(*GROWING)
    stride, padding, dilation = draw(1, 2, (2, 1)), draw(0, 1, (1, 0)), draw(1, 2)
    conv = nn.Conv2d(9, 12, size, stride, padding, dilation, bias=bias)
    norm = draw(None, nn.BatchNorm2d(12).eval())
    if norm is not None:
        norm.running_mean[:], norm.running_var[:] = torch.randn(12), torch.rand(12) + 0.5
        nn.init.normal_(norm.weight)
    activation, apply = draw((("none", ()), lambda x: x), (("relu", ()), F.relu), (("hardtanh", (0.0, 6.0)), F.relu6))
    kernel, image = conv.weight.detach(), torch.randn(3, 9, 8, 7)
    with torch.inference_mode():
        layer = Convolution(conv, norm, activation)
        truncator, plain = Truncator(kernel, Cut.parse(cut)), norm or nn.Identity()
        layer.growing = Growing(layer, [truncator(*RANKS[:k]) for k in (1, 2, 4)])
        other = draw(None, torch.randn_like(conv(image)))
        for image in (image, image.flip(0)):
            for rank in (1, 3, 7):
                expected = plain(F.conv2d(image, truncate(kernel, cut, rank), conv.bias, stride, padding, dilation))
                expected = apply(expected if other is None else expected + other)
                torch.testing.assert_close(layer(image, other), expected, atol=2e-5, rtol=1e-4)


def test_several_layers_at_once(grown):
    """Those of few terms are convolved factor by factor, whatever was in their place before."""
    model, dataset = model_and_data("resnet18")
    layers = [layer for layer in conv_kernels(model) if not layer.startswith("layer4")]  # the largest kernels show nothing else
    joint = lambda cuts, levels: joint_truncations(model, cuts, levels=levels, layers=layers)
    cells = [*joint(["OUT", "OUT,KW"], [0.1, 0.9]), ({}, {}), *joint(["OUT"], [0.1])]
    assert cells[4][1] == {}
    found = run(model, dataset, cells)
    for (labels, evaluation), (_, kernels) in zip(found, cells, strict=True):
        expected = swapped(model, dataset, kernels)
        assert (evaluation.correct != expected.correct).sum() <= 2 and evaluation.loss == pytest.approx(expected.loss, rel=1e-4)
    assert grown == [1] * (3 * len(layers))
    assert np.array_equal(found[0][1].correct, found[-1][1].correct) and found[0][1].loss == found[-1][1].loss


@pytest.mark.parametrize("name", LAYERS)
def test_against_the_weight_swapped_and_the_whole_network_run(name, grown):
    model, dataset = model_and_data(name)
    cells = [({}, {}), *cut_truncations(model, LAYERS[name], CUTS, RANKS), ({}, {})]
    found, differ, harmed = run(model, dataset, cells), 0, 0
    for (labels, evaluation), (_, kernels) in zip(found, cells, strict=True):
        expected = swapped(model, dataset, kernels)
        differ += (evaluation.correct != expected.correct).sum()
        harmed += (~expected.correct).sum()
        assert evaluation.loss == pytest.approx(expected.loss, rel=1e-4), labels
    assert harmed > 100 and differ <= 2
    spatial = [layer for layer in LAYERS[name] if conv_kernels(model)[layer].shape[2:].numel() > 1]
    assert grown == [4] * (4 * len(spatial) + (len(LAYERS[name]) - len(spatial)))


# ---- what is computed --------------------------------------------------------------------------------------------

def test_a_cell_is_the_same_whichever_others_there_are(grown):
    """A sweep that was cut off goes on in the middle of a run, and must end in the same table."""
    model, dataset = model_and_data("vanilla")
    cells = list(cut_truncations(model, "conv3", ["OUT", "OUT,KW"], RANKS))
    whole = run(model, dataset, cells)
    for some in (slice(1, None, 2), slice(3, 4), slice(2, 6)):
        for (labels, found), (_, expected) in zip(run(model, dataset, cells[some]), whole[some], strict=True):
            assert found.loss == expected.loss and np.array_equal(found.correct, expected.correct), labels
    assert grown == [4, 4, 2, 2, 1, 2, 2]


def test_every_term_is_convolved_once_a_batch(monkeypatch, grown):
    model, dataset = model_and_data("vanilla")  # 200 images are two batches
    calls, convolve = [], growing._Terms.__call__
    monkeypatch.setattr(growing._Terms, "__call__",
                        lambda self, *arguments, **options: calls.append(self.weight.shape[:2]) or convolve(self, *arguments, **options))
    run(model, dataset, list(cut_truncations(model, "conv2", ["OUT"], RANKS)))
    assert calls == [(7, 32), (64, 1), (64, 2), (64, 1), (64, 3)] * 2


def test_with_an_executor(grown):
    model, dataset = model_and_data("vanilla")
    cells = list(cut_truncations(model, "conv3", ["IN", "OUT,KH"], RANKS))
    expected = run(model, dataset, cells)
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        for (labels, found), (same, other) in zip(run(model, dataset, cells, executor=executor), expected, strict=True):
            assert labels == same and np.array_equal(found.correct, other.correct)
            assert found.loss == pytest.approx(other.loss, rel=1e-5)


# ---- what grows --------------------------------------------------------------------------------------------------

def test_what_continues_what():
    kernel = torch.randn(6, 5, 3, 3)
    at = Truncator(kernel, Cut.parse("OUT"))
    few, more, other = at(1, 2), at(1, 2, 4), at(1, 3)
    assert more.continues(few) and more.continues(at(1)) and not few.continues(more) and not more.continues(more)
    assert not other.continues(few) and not few.continues(other) and not more.continues(other)
    assert not more.continues(Truncator(kernel, Cut.parse("IN"))(1, 2))
    assert not more.continues(Truncator(kernel + 1, Cut.parse("OUT"))(1, 2))
    assert not more.continues(factorize(kernel, "OUT", 2)) and not more.continues(kernel)
    assert continues({"a": more}, {"a": few})
    for cell, before in (({"a": more}, {"b": few}), ({"a": more}, {}), ({}, {}), ({"a": more, "b": more}, {"a": few, "b": few})):
        assert not continues(cell, before)


def test_runs():
    at = Truncator(torch.randn(6, 5, 3, 3), Cut.parse("OUT"))
    one, two, four = ({"a": at(*ranks)} for ranks in ((1,), (1, 2), (1, 2, 4)))
    cells = [{}, one, two, four, two, four, {"b": at(1, 2, 4)}, one]
    assert list(runs(cells)) == [[{}], [one, two, four], [two, four], [cells[6]], [one]]


@pytest.mark.parametrize("cut, groups, grows", [("OUT", 1, True), ("IN", 1, True), ("OUT,KW", 1, True), ("OUT,IN", 1, False),
                                                ("KW", 1, False), ("OUT", 4, False)])
def test_which_truncations_can_grow(cut, groups, grows):
    layer = Convolution(nn.Conv2d(64, 64, 3, groups=groups))
    kernel = layer.kernel
    assert can_grow(layer, Truncator(kernel, Cut.parse(cut))(1, 2)) == grows
    assert not can_grow(layer, factorize(kernel, cut, 2)) and not can_grow(layer, kernel)
    narrow = Convolution(nn.Conv2d(3, 64, 3))
    assert not can_grow(narrow, Truncator(narrow.kernel, Cut.parse("OUT"))(1, 2)), "too few multiplications to be worth it"


@pytest.mark.parametrize("scale, cuts", [(2, ("OUT", "OUT")), (1, ("OUT,KW", "OUT,KH"))], ids=["another kernel", "another cut"])
def test_what_shares_the_left_factor_alone_is_not_continued(grown, scale, cuts):
    """2K has K's left singular vectors; a kernel that is symmetric in KH and KW has the same factors at OUT,KW and OUT,KH."""
    model, dataset = model_and_data("vanilla")
    kernel = conv_kernels(model)["conv3"]
    kernel = (kernel + kernel.transpose(2, 3)).detach()
    before = Truncator(kernel, Cut.parse(cuts[0]))(3)
    after = Truncator(scale * kernel, Cut.parse(cuts[1]))(3, 7)
    assert torch.equal(before.factors[0], after.factors[0][:, :3]) and not after.continues(before)
    cells = [({}, {"conv3": before}), ({}, {"conv3": after})]
    for (_, found), (_, kernels) in zip(run(model, dataset, cells), cells, strict=True):
        assert found.loss == pytest.approx(swapped(model, dataset, kernels).loss, rel=1e-4)
