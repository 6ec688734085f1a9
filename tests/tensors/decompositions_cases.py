"""Decompositions as data: how each is made, what it must count, and what is refused."""

import functools

import torch

import tnlib

SHAPE = OUT, IN, KH, KW = (6, 5, 3, 2)

# Of a kernel of SHAPE: how it is made, and the number of parameters.
DECOMPOSITIONS = {
    "hosvd": (lambda k: tnlib.hosvd(k, (4, 3, 2, 1)), 4 * 3 * 2 * 1 + OUT * 4 + IN * 3 + KH * 2 + KW * 1),
    "hosvd-sequential": (lambda k: tnlib.hosvd(k, (3, 4, 2, 2), sequential=True),
                         3 * 4 * 2 * 2 + OUT * 3 + IN * 4 + KH * 2 + KW * 2),
    "hosvd-full": (tnlib.hosvd, OUT * IN * KH * KW + OUT**2 + IN**2 + KH**2 + KW**2),
    "cp": (lambda k: tnlib.cp(k, 4), 4 * (OUT + IN + KH + KW)),
    "cp-rank-1": (lambda k: tnlib.cp(k, 1), OUT + IN + KH + KW),
    "train": (lambda k: tnlib.tensor_train(k, (3, 4, 5)), IN * 3 + 3 * KH * 4 + 4 * KW * 5 + 5 * OUT),
    "train-full": (lambda k: tnlib.tensor_train(k, (5, 12, 6)), IN * 5 + 5 * KH * 12 + 12 * KW * 6 + 6 * OUT),
    "ring": (lambda k: tnlib.tensor_ring(k, (2, 3, 4, 2)), 2 * IN * 3 + 3 * KH * 4 + 4 * KW * 2 + 2 * OUT * 2),
    "ring-open": (lambda k: tnlib.tensor_ring(k, (1, 2, 3, 2)), 1 * IN * 2 + 2 * KH * 3 + 3 * KW * 2 + 2 * OUT * 1),
    "separable": (tnlib.separable, OUT * IN * (KH + KW)),
    "depthwise-separable": (tnlib.depthwise_separable, IN * (OUT + KH * KW)),
    **{f"cut-{cut.name}": (lambda k, cut=cut: tnlib.factorize(k, cut, 2), 2 * sum(cut.dimensions(SHAPE)))
       for cut in tnlib.CUTS},
}
FITTED = "cp", "cp-rank-1", "ring", "ring-open"

# Of a kernel of any shape.
OF_RANK_1 = {
    "hosvd": lambda k: tnlib.hosvd(k, (1, 1, 1, 1)), "cp": lambda k: tnlib.cp(k, 1),
    "train": lambda k: tnlib.tensor_train(k, (1, 1, 1)), "ring": lambda k: tnlib.tensor_ring(k, (1, 1, 1, 1)),
    "separable": tnlib.separable, "depthwise-separable": tnlib.depthwise_separable,
}

# Of a kernel (48, 40, 3, 3): far smaller than dense.
SMALL = {
    "hosvd": lambda k: tnlib.hosvd(k, (10, 8, 2, 2)), "cp": lambda k: tnlib.cp(k, 8, starts=1, max_iterations=5),
    "train": lambda k: tnlib.tensor_train(k, (8, 8, 8)),
    "ring": lambda k: tnlib.tensor_ring(k, (2, 4, 4, 4), starts=1, max_iterations=3),
    "separable": tnlib.separable, "depthwise-separable": tnlib.depthwise_separable,
    **{f"cut-{cut.name}": lambda k, cut=cut: tnlib.factorize(k, cut, 1) for cut in tnlib.CUTS},
}

# The indices of the factors as a network, for whichever library contracts it; OUT, IN, KH, KW are o, i, h, w.
NETWORKS = {
    "hosvd": "abcd,oa,ib,hc,wd", "cp": "or,ir,hr,wr", "train": "aib,bhc,cwd,doa", "ring": "aib,bhc,cwd,doa",
    "separable": "oih,oiw", "depthwise-separable": "oi,ihw"}

THIN = {"1x1": (6, 4, 1, 1), "depthwise": (4, 1, 3, 3), "one-filter": (1, 5, 3, 3), "1x3": (6, 4, 1, 3),
        "scalar": (1, 1, 1, 1)}

X = torch.zeros(1, 5, 7, 7)
K = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
NAN = K.where(K < 1.5, float("nan"))

BAD = {
    "three-modes": (lambda: tnlib.hosvd(K[0]), ValueError, r"kernel must have four .*\(5, 3, 2\)"),
    "empty": (lambda: tnlib.separable(K[:0]), ValueError, r"non-empty .*\(0, 5, 3, 2\)"),
    "integers": (lambda: tnlib.tensor_train(K.long(), (1, 1, 1)), TypeError, "floating dtype, .* got torch.int64"),
    "integers-cp": (lambda: tnlib.cp(K.int(), 1), TypeError, "floating dtype, .* got torch.int32"),
    "numpy": (lambda: tnlib.depthwise_separable(K.numpy()), TypeError, "must be a torch tensor .* got ndarray"),
    "beyond-half": (lambda: tnlib.hosvd(torch.full((16, 16, 3, 3), 3e3).half()), ValueError, r"a factor .*\(16, 16, 3, 3\) has numbers beyond what torch.float16"),
    "beyond-float": (lambda: tnlib.tensor_train(torch.full((16, 16, 3, 3), 1e38), (4, 4, 4)), ValueError, "take kernel.float.* or divide it by its norm"),
    "nan": (lambda: tnlib.tensor_ring(NAN, (1, 1, 1, 1)), ValueError, "NaN or infinity"),
    "hosvd-three": (lambda: tnlib.hosvd(K, (1, 1, 1)), ValueError, r"4 whole numbers \(OUT, IN, KH, KW\), got \(1, 1"),
    "hosvd-number": (lambda: tnlib.hosvd(K, 2), ValueError, "ranks must be 4 whole numbers .* got 2"),
    "hosvd-above": (lambda: tnlib.hosvd(K, (6, 5, 4, 2)), ValueError, r"ranks\[2\] \(of the mode KH .* 1 to 3, got 4"),
    "hosvd-wide-mode": (lambda: tnlib.hosvd(K[:, :1, :1], (3, 1, 1, 2)), ValueError, r"mode OUT .* from 1 to 2, got 3"),
    "hosvd-sequence": (lambda: tnlib.hosvd(K[:, :, :1, :1], (2, 5, 1, 1), sequential=True), ValueError,
                       r"ranks\[1\] \(of the mode IN .* from 1 to 2, got 5"),
    "hosvd-0": (lambda: tnlib.hosvd(K, (0, 1, 1, 1)), ValueError, r"ranks\[0\] \(of the mode OUT .* 1 to 6, got 0"),
    "hosvd-true": (lambda: tnlib.hosvd(K, (1, True, 1, 1)), TypeError, r"ranks\[1\] .* whole number .* got True"),
    "hosvd-float": (lambda: tnlib.hosvd(K, (1, 2.0, 1, 1)), TypeError, r"ranks\[1\] .* whole number .* got 2.0"),
    "cp-above": (lambda: tnlib.cp(K, 31), ValueError, r"rank of the CP .*\(6, 5, 3, 2\) must be from 1 to 30, got 31"),
    "cp-0": (lambda: tnlib.cp(K, 0), ValueError, "from 1 to 30, got 0"),
    "cp-true": (lambda: tnlib.cp(K, True), TypeError, "whole number from 1 to 30, got True"),
    "cp-list": (lambda: tnlib.cp(K, [2]), TypeError, r"whole number from 1 to 30, got \[2\]"),
    "cp-zero": (lambda: tnlib.cp(0 * K, 1), ValueError, r"\(6, 5, 3, 2\) is zero"),
    "cp-seed": (lambda: tnlib.cp(K, 1, seed=-1), ValueError, "seed must be .* got -1"),
    "cp-starts": (lambda: tnlib.cp(K, 1, starts=0), ValueError, "starts must be .* at least 1, got 0"),
    "cp-starts-none": (lambda: tnlib.cp(K, 1, starts=0, svd_starts=-1), ValueError, "svd_starts must be .* at least 0, got -1"),
    "cp-starts-negative": (lambda: tnlib.cp(K, 1, starts=-1, svd_starts=2), ValueError, "starts must be .* at least 0, got -1"),
    "cp-tolerance-text": (lambda: tnlib.cp(K, 1, tolerance="a"), ValueError, "tolerance must be above 0, got 'a'"),
    "cp-iterations": (lambda: tnlib.cp(K, 1, max_iterations=0), ValueError, "max_iterations must be .* got 0"),
    "cp-tolerance-true": (lambda: tnlib.cp(K, 1, tolerance=True), ValueError, "tolerance must be above 0, got True"),
    "cp-tolerance": (lambda: tnlib.cp(K, 1, tolerance=0), ValueError, "tolerance must be above 0, got 0"),
    "train-four": (lambda: tnlib.tensor_train(K, (1, 1, 1, 1)), ValueError, r"3 whole numbers \(after IN, .* got"),
    "train-above": (lambda: tnlib.tensor_train(K, (6, 1, 1)), ValueError, r"ranks\[0\] .* after IN .* to 5, got 6"),
    "train-sequence": (lambda: tnlib.tensor_train(K, (2, 7, 1)), ValueError, r"ranks\[1\] .* after KH .* 6, got 7"),
    "train-right": (lambda: tnlib.tensor_train(K, (5, 12, 7)), ValueError, r"bond after KW .* from 1 to 6, got 7"),
    "train-0": (lambda: tnlib.tensor_train(K, (2, 0, 1)), ValueError, r"ranks\[1\] .* from 1 to 6, got 0"),
    "train-true": (lambda: tnlib.tensor_train(K, (True, 1, 1)), TypeError, r"ranks\[0\] .* got True"),
    "ring-three": (lambda: tnlib.tensor_ring(K, (1, 1, 1)), ValueError, r"4 whole numbers \(closing, after IN, .* got"),
    "ring-above": (lambda: tnlib.tensor_ring(K, (2, 2, 2, 5)), ValueError, r"ranks\[3\] .* bond KW–OUT .* to 4, got 5"),
    "ring-closing": (lambda: tnlib.tensor_ring(K, (7, 1, 1, 1)), ValueError, r"bond OUT–IN .* from 1 to 5, got 7"),
    "ring-0": (lambda: tnlib.tensor_ring(K, (1, 1, 0, 1)), ValueError, r"ranks\[2\] .* at least 1, got 0"),
    "ring-true": (lambda: tnlib.tensor_ring(K, (1, 1, True, 1)), ValueError, r"ranks\[2\] .* whole number .* got True"),
    "ring-zero": (lambda: tnlib.tensor_ring(0 * K, (1, 1, 1, 1)), ValueError, "is zero"),
    "image-channels": (lambda: tnlib.separable(K).conv2d(X[:, :3]), ValueError, r"\(N, 5, H, W\), got \(1, 3, 7, 7\)"),
    "image-dtype": (lambda: tnlib.separable(K).conv2d(X.double()), TypeError, "kernel's dtype torch.float32, got .*64"),
    "image-small": (lambda: tnlib.hosvd(K).conv2d(X[:, :, :2]), ValueError, r"\(3, 2\) must fit .*\(2, 7\)"),
    "same-strided": (lambda: tnlib.hosvd(K).conv2d(X, 2, "same"), ValueError, r"'same' .* stride \(2, 2\)"),
    "stride-0": (lambda: tnlib.hosvd(K).conv2d(X, 0), ValueError, "stride must be .* at least 1, .* got 0"),
    "count-size": (lambda: tnlib.hosvd(K).multiply_adds(0), ValueError, "image_size must be .* at least 1, .* got 0"),
    "count-small": (lambda: tnlib.hosvd(K).multiply_adds((2, 7)), ValueError, r"\(3, 2\) must fit"),
}


def gaussian(shape=SHAPE, seed=0, dtype=torch.float64):
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def of_rank(rank, shape=SHAPE, seed=0):
    return torch.einsum("or,ir,hr,wr->oihw", *[gaussian((n, rank), seed + k) for k, n in enumerate(shape)])


@functools.cache
def decomposed(name, dtype=torch.float64):
    return DECOMPOSITIONS[name][0](gaussian(dtype=dtype))


def error(kernel, factors):
    return tnlib.relative_error(kernel, factors.to_kernel()).item()
