"""Kernels as small tensor networks (Figure 3), as replacements for `sweep`: Tucker-2, tensor train, CP, tensor ring.

Labels hold `norm_kept` (ν) and `relative_error` (ε) of the stored kernel, and `parameters`, the entries of all factors.
1×1 kernels are left out: there all of these are the truncation at the cut OUT.
"""

import math

import torch

from ..tensors.cuts import MODES, Cut, singular_values
from ..tensors.decompositions import CHAIN_MODES, hosvd, tensor_train
from ..tensors.fits import cp, tensor_ring
from ..tensors.spectra import rank_for_error
from .replacements import (FRACTIONS, Replacements, chosen_fractions, chosen_layers, chosen_ranks, compared, nonzero,
                           rank_at)

BOND_ERRORS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BOND_CUTS = ("IN", "OUT,KW", "OUT")  # a train in the order IN, KH, KW, OUT, cut at its three bonds
CP_RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
RING_RANKS = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)


def multi_mode_truncations(model, fractions=FRACTIONS, layers=None) -> Replacements:
    """Each layer alone truncated at OUT and IN together (HOSVD, Tucker-2), both at one fraction of their max_rank.

    Labels: `layer, fraction, rank_out, rank_in, norm_kept, relative_error, parameters` (core and two mode matrices).
    Not where OUT or IN has max_rank 1: there it is the truncation at one cut.
    """
    kernels = _spatial(model, layers)
    most = {layer: (Cut.parse("OUT").max_rank(kernel.shape), Cut.parse("IN").max_rank(kernel.shape))
            for layer, kernel in kernels.items()}
    plan = {}
    for layer in (layer for layer in most if min(most[layer]) > 1):
        for fraction in chosen_fractions(fractions):
            ranks = tuple(rank_at(fraction, n) for n in most[layer])
            if ranks != most[layer]:
                plan.setdefault((layer, *ranks), fraction)

    def generate():
        last = None
        for (layer, out, into), fraction in plan.items():
            if layer != last:
                last, full = layer, hosvd(kernels[layer].double())
                u_out, u_in, *rest = full.matrices
            core = full.core[:out, :into]                                       # [r_OUT, r_IN, KH, KW]
            kernel = torch.einsum("abcd,oa,ib,hc,wd->oihw", core, u_out[:, :out], u_in[:, :into], *rest)
            count = core.numel() + u_out[:, :out].numel() + u_in[:, :into].numel()
            yield ({"layer": layer, "fraction": fraction, "rank_out": out, "rank_in": into,
                    **compared(kernels[layer], kernel), "parameters": count},
                   {layer: kernel.to(kernels[layer].dtype)})

    return Replacements(kernels, len(plan), generate)


def train_truncations(model, errors=BOND_ERRORS, layers=None) -> Replacements:
    """Each layer alone as a tensor train (TT-SVD), its three inner bonds cut to one relative error.

    A bond takes the smallest rank at which the truncation of the kernel at that bond alone would have at most this error,
    or what the bond before it leaves. Labels: `layer, bond_error, rank_1, rank_2, rank_3, norm_kept, relative_error,
    parameters`; ε is at most √3 times the bonds' error. Exact trains are left out, and equal ones are there once.
    Source: Oseledets 2011, with the bonds' ranks from the kernel itself.
    """
    kernels = _spatial(model, layers)
    plan = {}
    for layer, kernel in kernels.items():
        spectra = [singular_values(kernel.double(), cut) for cut in BOND_CUTS]
        sizes = [kernel.shape[MODES.index(mode)] for mode in CHAIN_MODES[:3]]
        for error in chosen_fractions(errors, "errors"):
            ranks = []
            for spectrum, size in zip(spectra, sizes):
                ranks.append(min(rank_for_error(spectrum, error), size * (ranks[-1] if ranks else 1)))
            if ranks != list(map(len, spectra)):
                plan.setdefault((layer, *ranks), error)

    def generate():
        for (layer, *ranks), error in plan.items():
            train = tensor_train(kernels[layer].double(), ranks)
            kernel = train.to_kernel()
            yield ({"layer": layer, "bond_error": error, "rank_1": ranks[0], "rank_2": ranks[1], "rank_3": ranks[2],
                    **compared(kernels[layer], kernel), "parameters": train.num_parameters},
                   {layer: kernel.to(kernels[layer].dtype)})

    return Replacements(kernels, len(plan), generate)


def cp_truncations(model, ranks=None, layers=None, seed=0, starts=2, svd_starts=2, max_iterations=100) -> Replacements:
    """Each layer alone as a sum of `rank` outer products: the best of Gaussian and of singular-vector starts of `cp`.

    Labels: `layer, rank, max_rank, norm_kept, relative_error, parameters, fit` (1 − ε)`, largest_component_norm,
    converged`. `ranks`: None for `CP_RANKS`, else as in `chosen_ranks`; max_rank is the one at which any kernel of the
    shape is exact.
    """
    kernels = _spatial(model, layers)
    places = {(layer,): kernel.numel() // max(kernel.shape) for layer, kernel in kernels.items()}

    def fit(kernel, rank):
        return cp(kernel, rank, seed, starts, max_iterations, svd_starts=svd_starts)

    return _fits(kernels, fit, _at(ranks, CP_RANKS, places), places)


def ring_truncations(model, ranks=None, layers=None, seed=0, starts=1, max_iterations=60) -> Replacements:
    """Each layer alone as a tensor ring (ALS) whose four bonds are all `rank`.

    Labels: those of `cp_truncations`. `ranks`: None for `RING_RANKS`, else as in `chosen_ranks`; max_rank is the first
    at which a ring has as many parameters as the kernel. One start of 60 iterations: on the trained kernels another
    start changes ε by half a percent, and 40 more iterations lower it by one.
    """
    kernels = _spatial(model, layers)
    places = {(layer,): 1 + math.isqrt((kernel.numel() - 1) // sum(kernel.shape)) for layer, kernel in kernels.items()}

    def fit(kernel, rank):
        return tensor_ring(kernel, [rank] * 4, seed, starts, max_iterations, normal_equations=True)

    return _fits(kernels, fit, _at(ranks, RING_RANKS, places), places)


def _spatial(model, layers):
    """Name → kernel of the layers chosen, without those that are 1×1 or zero."""
    return {layer: kernel for layer, kernel in nonzero(chosen_layers(model, layers)).items() if kernel.shape[2:].numel() > 1}


def _at(ranks, grid, places):
    """For each place the ranks to try: those asked for, else those of `grid` below its max_rank."""
    if ranks is not None:
        return chosen_ranks(ranks, places)
    return {place: [rank for rank in grid if rank < most] for place, most in places.items()}


def _fits(kernels, fit, plan, places) -> Replacements:
    """The cells of a network that is fitted: `fit(kernel, rank)` for each layer at each of its ranks."""
    def cell(labels):
        whole = kernels[labels["layer"]]
        fitted = fit(whole, labels["rank"])
        kernel = fitted.to_kernel()
        return (labels | compared(whole, kernel) | {
            "parameters": fitted.num_parameters, "fit": 1 - fitted.relative_error,
            "largest_component_norm": fitted.largest_component_norm, "converged": fitted.converged},
            {labels["layer"]: kernel})

    asked = [{"layer": layer, "rank": rank, "max_rank": places[layer,]} for (layer,), at in plan.items() for rank in at]

    def generate(wanted=lambda labels: True):
        return (cell(labels) if wanted(labels) else None for labels in asked)

    return Replacements(kernels, len(asked), generate, asks=True)
