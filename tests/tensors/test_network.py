"""Convolution and pooling as contractions, against torch, einconv and a readable patch tensor."""

import pytest
import torch
from einconv.expressions.convNd_forward import einsum_expression
from hypothesis import given, strategies as st
from network_cases import BAD, POOLINGS, SETTINGS, SHAPES
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import tnlib
from tnlib.tensors.network import multiply_adds

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
every_shape = pytest.mark.parametrize("image_shape, kernel_shape, groups", SHAPES.values(), ids=SHAPES)
every_pooling = pytest.mark.parametrize("shape, kernel_size, stride", POOLINGS.values(), ids=POOLINGS)
# torch says that it may copy the image for an even kernel
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def gaussian(shape, seed=0, dtype=torch.float64):
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def fits(image_shape, kernel_shape, settings):
    """Whether torch takes it: it refuses a kernel wider than the padded image."""
    try:
        F.conv2d(torch.zeros(1, *image_shape[1:]), torch.zeros(1, image_shape[1], *kernel_shape[2:]), **settings)
    except RuntimeError:
        return False
    return True


def pattern(n, k, stride, padding, dilation):
    """The index pattern Π (input, output, kernel) of one direction: 1 where i = s·o + d·k − p, and else 0."""
    before, after = padding
    outputs = (n + before + after - dilation * (k - 1) - 1) // stride + 1
    i, o, k = torch.meshgrid(torch.arange(n), torch.arange(outputs), torch.arange(k), indexing="ij")
    return (i == stride * o + dilation * k - before).double()


def patches_by_pattern(image, kernel_size, stride=1, padding=0, dilation=1):
    """The readable patch tensor: an image contracted with the index patterns of both directions."""
    both = lambda value: value if isinstance(value, tuple) else (value, value)
    patterns = []
    for axis in (0, 1):
        n, k, s, d = image.shape[2 + axis], both(kernel_size)[axis], both(stride)[axis], both(dilation)[axis]
        words = {"valid": (0, 0), "same": (d * (k - 1) // 2, (d * (k - 1) + 1) // 2)}
        pads = words[padding] if padding in words else (both(padding)[axis],) * 2
        patterns.append(pattern(n, k, s, pads, d))
    return torch.einsum("nchw,hyi,wxj->ncijyx", image, *patterns)


# ---- the patch tensor --------------------------------------------------------------------------------------------

@every_setting
@pytest.mark.parametrize("kernel_size", [(3, 2), (1, 1), (2, 3), 2], ids=str)
def test_patches_are_those_of_the_index_pattern(kernel_size, settings):
    image = gaussian((2, 3, 9, 11))
    found = tnlib.patches(image, kernel_size, **settings)
    assert torch.equal(found, patches_by_pattern(image, kernel_size, **settings))


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"stride": (1, 3), "dilation": (2, 1)}], ids=str)
def test_patches_are_torchs_unfold(settings):
    image = gaussian((2, 3, 9, 11))
    found = tnlib.patches(image, (3, 2), **settings)
    assert torch.equal(found.reshape(2, 3 * 3 * 2, -1), F.unfold(image, (3, 2), **settings))


def test_patches_entry_by_entry():
    image = gaussian((1, 2, 5, 6))
    found = tnlib.patches(image, (2, 3), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    assert found.shape == (1, 2, 2, 3, 3, 2)
    for c, i, j, y, x in torch.cartesian_prod(*map(torch.arange, found.shape[1:])).tolist():
        row, column = 2 * y + i - 1, x + 2 * j
        assert found[0, c, i, j, y, x] == (image[0, c, row, column] if 0 <= row < 5 else 0)


# ---- convolution -------------------------------------------------------------------------------------------------

@every_shape
@every_setting
def test_conv2d_is_torchs(image_shape, kernel_shape, groups, settings):
    image, kernel = gaussian(image_shape), gaussian(kernel_shape, 1)
    if not fits(image_shape, kernel_shape, settings):
        with pytest.raises(ValueError, match="must fit into the padded image"):
            tnlib.conv2d(image, kernel, groups=groups, **settings)
        return
    found = tnlib.conv2d(image, kernel, groups=groups, **settings)
    torch.testing.assert_close(found, F.conv2d(image, kernel, groups=groups, **settings), rtol=1e-12, atol=1e-12)


@every_setting
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv2d_is_einconvs_network(settings, groups):
    image, kernel = gaussian((2, 4, 9, 11)), gaussian((8, 4 // groups, 3, 2), 1)
    equation, operands, shape = einsum_expression(image, kernel, groups=groups, **settings)
    expected = torch.einsum(equation, *operands).reshape(shape)
    torch.testing.assert_close(tnlib.conv2d(image, kernel, groups=groups, **settings), expected)


def pairs(least, most):
    return st.tuples(st.integers(least, most), st.integers(least, most))


@given(data=st.data(), channels=st.integers(1, 3), groups=st.integers(1, 3), filters=st.integers(1, 3),
       kernel_size=pairs(1, 4), stride=pairs(1, 4), dilation=pairs(1, 3), padding=pairs(0, 5))
def test_conv2d_is_torchs_for_any_shape(data, channels, groups, filters, kernel_size, stride, dilation, padding):
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel_size, dilation, padding)]
    size = [data.draw(st.integers(n, n + 6)) for n in least]
    image, kernel = gaussian((2, groups * channels, *size)), gaussian((groups * filters, channels, *kernel_size), 1)
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    torch.testing.assert_close(tnlib.conv2d(image, kernel, **settings), F.conv2d(image, kernel, **settings))


def test_a_delta_kernel_shifts_the_image():
    image, kernel = gaussian((1, 1, 6, 7)), torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    kernel[0, 0, 2, 1] = 1  # one row below the middle
    shifted = tnlib.conv2d(image, kernel, padding="same")
    assert torch.equal(shifted[..., :-1, :], image[..., 1:, :]) and not shifted[..., -1, :].any()


# ---- average pooling ---------------------------------------------------------------------------------------------

@every_pooling
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_avg_pool2d_is_torchs(shape, kernel_size, stride, dtype):
    image = gaussian(shape, dtype=dtype)
    found, expected = tnlib.avg_pool2d(image, kernel_size, stride), F.avg_pool2d(image, kernel_size, stride)
    assert found.dtype == dtype and found.shape == expected.shape
    assert (found - expected).abs().max() < TOLERANCE[dtype]


@every_pooling
def test_avg_pool2d_is_a_depthwise_convolution_with_a_constant(shape, kernel_size, stride):
    height, width = kernel_size if isinstance(kernel_size, tuple) else (kernel_size, kernel_size)
    image, kernel = gaussian(shape), torch.full((shape[1], 1, height, width), 1 / (height * width), dtype=torch.float64)
    expected = tnlib.conv2d(image, kernel, stride=(height, width) if stride is None else stride, groups=shape[1])
    torch.testing.assert_close(tnlib.avg_pool2d(image, kernel_size, stride), expected)


# ---- dtype, device, gradients, count -----------------------------------------------------------------------------

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_results_keep_dtype_and_device(dtype, device):
    image, kernel = gaussian((2, 4, 6, 7), dtype=dtype).to(device), gaussian((6, 2, 3, 3), 1, dtype).to(device)
    found = tnlib.conv2d(image, kernel, padding=1, groups=2)
    expected = F.conv2d(image, kernel, padding=1, groups=2)
    assert (found - expected).abs().max() < TOLERANCE[dtype] * expected.abs().max()
    for result in (found, tnlib.patches(image, 3), tnlib.avg_pool2d(image, 2)):
        assert result.dtype == dtype and result.device == image.device


@pytest.mark.parametrize("settings", [
    {}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}, {"stride": (1, 2), "groups": 2}], ids=str)
def test_gradients_of_conv2d_are_those_of_finite_differences(settings):
    kernel = gaussian((2, 2 // settings.get("groups", 1), 2, 3), 1).requires_grad_()
    image = gaussian((1, 2, 4, 5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda image, kernel: tnlib.conv2d(image, kernel, **settings), (image, kernel))


def test_gradients_of_patches_and_pooling_are_those_of_finite_differences():
    image = gaussian((1, 2, 5, 4)).requires_grad_()
    assert torch.autograd.gradcheck(lambda i: tnlib.patches(i, (2, 3), stride=2, padding=1, dilation=(2, 1)), image)
    assert torch.autograd.gradcheck(lambda i: tnlib.avg_pool2d(i, 2, stride=1), image)


def test_arguments_are_left_as_they_were():
    image, kernel = gaussian((1, 2, 5, 4)), gaussian((3, 2, 2, 2), 1)
    before = image.clone(), kernel.clone()
    tnlib.conv2d(image, kernel, padding=1), tnlib.avg_pool2d(image, 2)
    assert torch.equal(image, before[0]) and torch.equal(kernel, before[1])


@every_setting
@pytest.mark.parametrize("groups", [1, 2])
def test_multiply_adds_are_half_of_what_torch_counts(settings, groups):
    kernel = gaussian((6, 4 // groups, 3, 2))
    with FlopCounterMode(display=False) as counter:
        F.conv2d(gaussian((1, 4, 9, 11)), kernel, groups=groups, **settings)
    assert multiply_adds(kernel, (9, 11), **settings) == counter.get_total_flops() / 2


def test_multiply_adds_by_hand():
    kernel = torch.ones(64, 32, 3, 3)
    assert multiply_adds(kernel, 16, padding=1) == 64 * 32 * 9 * 16 * 16
    assert multiply_adds(kernel, (16, 8), stride=2, padding=1) == 64 * 32 * 9 * 8 * 4


# ---- bad input ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("function, arguments, keywords, error, message", BAD.values(), ids=BAD)
def test_bad_input_is_named(function, arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        getattr(tnlib, function)(*arguments, **keywords)
