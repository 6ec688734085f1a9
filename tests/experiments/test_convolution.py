"""A convolution as one product of matrices, against torch's own."""

import pytest
import torch
from torch.nn import functional as F

from tnlib.experiments.convolution import convolve


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("side, size, padding, stride, dilation, groups", [
    (4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (8, (3, 3), (1, 1), (2, 2), (1, 1), 1),
    (7, (3, 1), (2, 0), (2, 3), (2, 1), 1),
    (4, (1, 3), (0, 1), (1, 1), (1, 1), 1),
    (9, (1, 1), (0, 0), (1, 1), (1, 1), 1),
    (9, (1, 1), (0, 0), (2, 3), (1, 1), 1),
    (4, (1, 1), (1, 1), (2, 2), (1, 1), 1),
    (9, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (4, (3, 3), (1, 1), (1, 1), (1, 1), 2),
], ids=lambda value: str(value).replace(" ", ""))
def test_it_is_the_convolution(side, size, padding, stride, dilation, groups, bias):
    generator = torch.Generator().manual_seed(side)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    image = draw(3, 4, side, side).contiguous(memory_format=torch.channels_last)
    weight = draw(6, 4 // groups, *size).contiguous(memory_format=torch.channels_last)
    added = draw(6) if bias else None
    found = convolve(image, weight, added, padding, stride, dilation, groups)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found, F.conv2d(image, weight, added, stride, padding, dilation, groups), rtol=1e-12, atol=1e-12)
