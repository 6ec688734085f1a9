"""Convolutions and poolings as data: what every implementation is compared on, and what is refused."""

import itertools

import numpy as np
import torch

STRIDES = {"stride-1": 1, "stride-2": 2, "stride-3x2": (3, 2)}
PADDINGS = {"padding-0": 0, "padding-1": 1, "padding-1x4": (1, 4), "same": "same", "valid": "valid"}
DILATIONS = {"dilation-1": 1, "dilation-2": 2, "dilation-1x3": (1, 3)}

# Every combination that torch takes: padding "same" is for stride 1.
SETTINGS = {
    ",".join((stride, padding, dilation)):
        {"stride": STRIDES[stride], "padding": PADDINGS[padding], "dilation": DILATIONS[dilation]}
    for stride, padding, dilation in itertools.product(STRIDES, PADDINGS, DILATIONS)
    if not (padding == "same" and stride != "stride-1")}

# image, kernel, groups
SHAPES = {
    "dense": ((2, 4, 9, 11), (6, 4, 3, 2), 1),
    "two-groups": ((2, 4, 9, 11), (6, 2, 3, 2), 2),
    "depthwise": ((2, 4, 9, 11), (4, 1, 2, 3), 4),
    "depthwise-doubled": ((2, 4, 9, 11), (8, 1, 3, 3), 4),
    "1x1": ((1, 4, 5, 6), (3, 4, 1, 1), 1),
    "1x4": ((1, 2, 3, 12), (3, 2, 1, 4), 1),
    "one-channel": ((3, 1, 8, 10), (1, 1, 2, 2), 1),
    "no-image": ((0, 4, 9, 11), (6, 4, 3, 2), 1),
}

# image, kernel size, stride
POOLINGS = {
    "2": ((2, 3, 8, 8), 2, None),
    "3x2": ((2, 3, 9, 8), (3, 2), None),
    "leftover": ((2, 3, 9, 7), 2, None),
    "overlapping": ((2, 3, 9, 8), 3, 1),
    "apart": ((2, 3, 9, 8), 2, (3, 4)),
    "global": ((2, 3, 4, 4), 4, None),
    "one-pixel": ((1, 1, 3, 2), 1, None),
}

X, K = torch.zeros(2, 4, 9, 11), torch.ones(6, 4, 3, 2)

# function's name in tnlib, arguments, keywords, error, message
BAD = {
    "image-three-modes": ("patches", (X[0], 3), {}, ValueError, r"image must have .*\(N, C, H, W\), got \(4, 9, 11\)"),
    "image-integer": ("patches", (X.long(), 3), {}, TypeError, r"image must be .*floating.* torch.int64 .*\(2, 4, 9,"),
    "image-numpy": ("patches", (X.numpy(), 3), {}, TypeError, "image must be a torch tensor .* got ndarray"),
    "image-elsewhere": ("conv2d", (X.to("meta"), K), {}, ValueError, "image must be on the CPU or on CUDA, .* got the device meta"),
    "image-sparse": ("patches", (X.to_sparse(), 3), {}, TypeError, r"image must be a dense tensor, got one of layout torch.sparse_coo"),
    "padding-array": ("patches", (X, 3), {"padding": np.array([1, 1])}, ValueError, r"padding must be .*'same' .* got array\(\[1, 1\]\)"),
    "image-complex": ("avg_pool2d", (X.cfloat(), 3), {}, TypeError, "image must be .* got torch.complex64"),
    "image-of-other-dtype": ("conv2d", (X.double(), K), {}, TypeError, "kernel's dtype torch.float32, got .*64"),
    "image-without-modes": ("conv2d", (X[0, 0, 0], K), {}, ValueError, r"image must have .* got \(11,\)"),
    "channels": ("conv2d", (X[:, :3], K), {}, ValueError, r"\(N, 4, H, W\), got \(2, 3, 9, 11\)"),
    "channels-of-groups": ("conv2d", (X, K), {"groups": 2}, ValueError, r"\(N, 8, H, W\), got \(2, 4, 9, 11\)"),
    "groups-and-OUT": ("conv2d", (X, K[:, :1]), {"groups": 4}, ValueError, r"groups must divide OUT .*\(6, 1, 3"),
    "groups-and-C": ("conv2d", (X, K), {"groups": 3}, ValueError, r"groups must divide .* C .*\(2, 4, .* got 3"),
    "groups-0": ("conv2d", (X, K), {"groups": 0}, ValueError, "groups must be .* at least 1, got 0"),
    "groups-true": ("conv2d", (X, K), {"groups": True}, ValueError, "groups must be .* got True"),
    "kernel-integer": ("conv2d", (X, K.long()), {}, TypeError, "kernel must be .*floating dtype, .* got torch.int64"),
    "kernel-three-modes": ("conv2d", (X, K[0]), {}, ValueError, r"kernel must have four .*\(4, 3, 2\)"),
    "kernel-too-high": ("conv2d", (X[:, :, :2], K), {}, ValueError, r"\(3, 2\) must fit .* image \(2, 11\)"),
    "kernel-dilated": ("conv2d", (X, K), {"dilation": 5}, ValueError, r"dilation \(5, 5\) it spans \(11, 6\)"),
    "patch-too-wide": ("patches", (X, (3, 14)), {"padding": 1}, ValueError, r"\(3, 14\) must fit .* has \(11, 13\)"),
    "pool-too-wide": ("avg_pool2d", (X, 12), {}, ValueError, r"\(12, 12\) must fit"),
    "kernel-size-0": ("patches", (X, 0), {}, ValueError, "kernel_size must be .* at least 1, .* got 0"),
    "kernel-size-float": ("avg_pool2d", (X, 2.0), {}, ValueError, "kernel_size must be a whole number .* got 2.0"),
    "stride-0": ("conv2d", (X, K), {"stride": 0}, ValueError, "stride must be .* at least 1, .* got 0"),
    "stride-negative": ("patches", (X, 3), {"stride": (1, -1)}, ValueError, r"stride must be .* got \(1, -1\)"),
    "stride-of-pool": ("avg_pool2d", (X, 3), {"stride": 0}, ValueError, "stride must be .* got 0"),
    "stride-three": ("conv2d", (X, K), {"stride": (1, 1, 1)}, ValueError, r"or a pair of them, got \(1, 1, 1\)"),
    "dilation-0": ("patches", (X, 3), {"dilation": 0}, ValueError, "dilation must be .* got 0"),
    "padding-negative": ("conv2d", (X, K), {"padding": -1}, ValueError, "padding must be .*'same' or 'valid'.* -1"),
    "padding-word": ("conv2d", (X, K), {"padding": "full"}, ValueError, "padding must be .*'same' .* got 'full'"),
    "padding-true": ("patches", (X, 3), {"padding": True}, ValueError, "padding must be .* got True"),
    "same-strided": ("conv2d", (X, K), {"padding": "same", "stride": 2}, ValueError, r"'same' .* stride \(2, 2\)"),
}
