"""Winograd's convolution against numpy's correlation, and torch's in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tnlib.experiments import winograd
from tnlib.experiments.convolution import Convolution
from tnlib.experiments.winograd import Scratch, Winograd, tile_side, transforms

# Of the largest output: rounding in float32. For m = 4 the transforms' entries are up to 8, and their inverses' 1/15.
TOLERANCE = {2: 2e-6, 4: 1e-5}


def exact(image, kernel, bias):
    return F.conv2d(image.double(), kernel.double(), bias.double(), padding=1)


def random(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("m", [2, 4])
def test_the_transforms_give_the_correlation_of_any_numbers(m):
    A, G, B = transforms(m)
    numbers = np.random.RandomState(0)
    for _ in range(20):
        under, kernel = numbers.randn(m + 2), numbers.randn(3)
        assert A @ ((G @ kernel) * (B @ under)) == pytest.approx(np.correlate(under, kernel, "valid"), abs=1e-12)


def test_the_transforms_for_tiles_of_two_are_those_of_the_article():
    """Lavin and Gray's equation 8 and what follows it; there two rows of B, and of the others, have another sign."""
    A, G, B = transforms(2)
    assert np.array_equal(np.abs(G), [[1, 0, 0], [.5, .5, .5], [.5, .5, .5], [0, 0, 1]])
    assert np.array_equal(np.abs(B), [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]])
    assert np.array_equal(np.abs(A), [[1, 1, 1, 0], [0, 1, 1, 1]])


@given(st.sampled_from([2, 4]), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9),
       st.integers(1, 9), st.integers(1, 8), st.integers(0, 2**31))
def test_any_images_are_convolved_as_torch_does(m, count, down, across, columns, rows, tiles, seed):
    image, kernel, bias = random((count, columns, m * down, m * across), (rows, columns, 3, 3), (rows,), seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "TILES", tiles)  # some images at a time, the last time fewer
        found = Winograd(kernel, m, Scratch())(image.contiguous(memory_format=torch.channels_last), bias)
    expected = exact(image, kernel, bias)
    assert found.shape == expected.shape and found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() <= TOLERANCE[m] * max(1, expected.abs().max())


def test_the_error_is_a_few_times_that_of_torch_and_below_that_of_the_article():
    image, kernel, bias = random((32, 64, 8, 8), (128, 64, 3, 3), (128,))
    expected = exact(image, kernel, bias)
    error = lambda found: ((found - expected).norm() / expected.norm()).item()
    torchs, two, four = error(F.conv2d(image, kernel, bias, padding=1)), *(
        error(Winograd(kernel, m, Scratch())(image, bias)) for m in (2, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(winograd.POINTS, 4, (0, 1, -1, 2, -2))
        article = error(Winograd(kernel, 4, Scratch())(image, bias))
    assert two < 2 * torchs and four < 10 * torchs and four < 0.8 * article


@pytest.mark.parametrize("shape, size, side", [
    ((128, 64, 3, 3), (8, 8), 4), ((256, 128, 3, 3), (4, 4), 4), ((512, 512, 3, 3), (2, 2), 2),
    ((256, 256, 3, 3), (4, 6), 2), ((256, 256, 3, 3), (7, 7), None), ((64, 32, 3, 3), (8, 8), None),
    ((128, 128, 3, 3), (16, 16), None), ((32, 3, 3, 3), (4, 4), None)], ids=str)
def test_only_many_channels_at_few_positions_are_worth_it(shape, size, side):
    assert tile_side(shape, *size) == side


def fused(conv, **others):
    """A `Convolution` as the sweep has it, and whether its last images were convolved this way."""
    convolution = Convolution(conv, **others)
    return convolution, lambda: convolution.winograd is not None


@pytest.mark.parametrize("added", [False, True], ids=["alone", "with what is added"])
def test_a_layer_with_norm_and_activation_takes_it_where_it_suits(added):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(96, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128)
    norm.running_mean, norm.running_var = torch.randn(128), torch.rand(128) + 0.5
    convolution, by_winograd = fused(conv, norm=norm.eval(), activation=("relu", ()))
    other = torch.randn(5, 128, 8, 8)
    others = [other.clone()] if added else []
    for size, kernel in ((8, None), (8, torch.randn_like(conv.weight)), (4, None), (2, None), (8, None)):
        image = torch.randn(5, 96, size, size)
        with torch.no_grad():
            convolution.put(kernel)
            assert not by_winograd()
            at_size = [value[:, :, :size, :size] for value in others]
            found = convolution(image, *at_size)
            own = conv.weight if kernel is None else kernel
            expected = norm.double()(F.conv2d(image.double(), own.double(), padding=1)) + sum(at_size)
            norm.float()
        assert by_winograd() and (found - expected.relu()).abs().max() <= 1e-5 * expected.abs().max()
    assert not added or torch.equal(others[0], other)


@pytest.mark.parametrize("conv", [
    nn.Conv2d(128, 128, 3, padding=0), nn.Conv2d(128, 128, 3, stride=2, padding=1), nn.Conv2d(128, 128, 3, padding=2, dilation=2),
    nn.Conv2d(128, 128, 3, padding=1, groups=2), nn.Conv2d(128, 128, (3, 1), padding=(1, 0)), nn.Conv2d(128, 128, 1)], ids=str)
def test_no_other_convolution_is_taken_for_one(conv):
    convolution, by_winograd = fused(conv)
    image = torch.randn(2, 128, 8, 8)
    with torch.no_grad():
        found, expected = convolution(image), conv.double()(image.double())
    assert not by_winograd() and (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_memory_is_used_again_for_whatever_is_not_larger():
    scratch = Scratch()
    first = scratch("a", 2, 3)
    assert scratch("a", 5).data_ptr() == first.data_ptr() != scratch("b", 2, 3).data_ptr()
    larger = scratch("a", 7)
    assert larger.shape == (7,) and scratch("a", 6).data_ptr() == larger.data_ptr()
