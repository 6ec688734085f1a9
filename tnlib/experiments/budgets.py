"""The ranks that fit a network into a budget of parameters.

One rule, and measures to choose by. Every truncation of a kernel costs something by a measure; each layer takes the fewest
parameters that cost it no more than a level that all layers have in common, and the level is the lowest at which all
kernels together fit into the budget.
"""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..tensors.cuts import CUTS, distinct_cuts, singular_values


@dataclass(frozen=True)
class Option:
    """A kernel with so many `.parameters`, at a `.cost` by some measure: of `.rank` at `.cut` or, without these, as it is."""

    cost: float
    parameters: int
    cut: str | None = None
    rank: int | None = None


def choose(options: dict[str, list[Option]], most: float) -> tuple[dict[str, Option], float]:
    """Layer → its option, and their level: each the one of fewest parameters whose cost is at most the level, which is the
    lowest at which all layers together have at most `most` parameters.

    Every layer has an option at no cost: its kernel. Raises `ValueError` where they have more even at the fewest parameters of each.
    """
    def at(level):
        fits = {layer: [option for option in of if option.cost <= level] for layer, of in options.items()}
        return {layer: min(of, key=lambda option: (option.parameters, option.cost)) for layer, of in fits.items()}

    total = lambda chosen: sum(option.parameters for option in chosen.values())
    levels = sorted({option.cost for of in options.values() for option in of})
    place = bisect_left(levels, True, key=lambda level: total(at(level)) <= most)
    if place == len(levels):
        raise ValueError(f"even at the lowest ranks whose cost is known the network has more than {most:,.0f} parameters in its convolutions: give a "
                         "larger budget")
    return at(levels[place]), levels[place]


def _options(kernel, costs) -> list[Option]:
    """The kernel itself, at no cost, and those of its truncations that have fewer parameters and a cost that is a number; `costs`: (cut, rank, cost)."""
    sizes = {cut.name: sum(cut.dimensions(kernel.shape)) for cut in CUTS}
    return [Option(0.0, kernel.numel()), *(Option(float(cost), rank * sizes[cut], cut, rank) for cut, rank, cost in costs
                                           if rank * sizes[cut] < kernel.numel() and np.isfinite(cost))]


def by_measurement(kernels: dict, cells: pd.DataFrame, column: str) -> dict[str, list[Option]]:
    """Layer → its options at the cost `column` of `cells`, the rows of "truncation" of some images.

    Between the ranks that were measured the cost is interpolated; and it is never less than at a higher rank, nor than 0: what is gained
    by chance further down is not counted on.
    """
    def costs(layer):
        for (cut, most), rows in cells[cells["layer"] == layer].groupby(["cut", "max_rank"], sort=False):
            rows = rows.sort_values("rank", ascending=False)
            ranks, values = [most, *rows["rank"]], np.maximum.accumulate([0.0, *rows[column]])
            every = range(ranks[-1], most)
            yield from ((cut, rank, cost) for rank, cost in zip(every, np.interp(every, ranks[::-1], values[::-1])))

    return {layer: _options(kernel, costs(layer)) for layer, kernel in kernels.items()}


def by_norm(kernels: dict) -> dict[str, list[Option]]:
    """Layer → its options at the cost ε, at all distinct cuts and ranks."""
    def costs(kernel):
        for cut in distinct_cuts(kernel.shape):
            squares = singular_values(kernel.double(), cut).square().flip(0).cumsum(0).flip(0)  # of those from each on
            lost = squares[1:] / squares[0] if squares[0] else squares[1:]  # of a kernel that is 0 nothing is lost
            yield from ((cut.name, rank, cost) for rank, cost in enumerate(lost.sqrt().tolist(), start=1))

    return {layer: _options(kernel, costs(kernel)) for layer, kernel in kernels.items()}


def by_fraction(kernels: dict, cut, whole: tuple[str, ...] = ()) -> dict[str, list[Option]]:
    """Layer → its options at `cut`, at the cost of the share of the largest rank that is taken away; those of `whole` have their
    kernel alone."""
    def costs(layer, kernel):
        if layer not in whole and distinct_cuts(kernel.shape, [cut]):
            most = cut.max_rank(kernel.shape)
            yield from ((cut.name, rank, 1 - rank / most) for rank in range(1, most))

    return {layer: _options(kernel, costs(layer, kernel)) for layer, kernel in kernels.items()}
