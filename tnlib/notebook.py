"""What the book's notebooks use beside `tnlib` itself.

    from tnlib import notebook as nb
    from tnlib.notebook import DatasetName, Profile, Seed    # the types of the parameters cell
"""

from .experiments.catalogue import listed_cases
from .experiments.chains import channel_weights
from .experiments.compression import multiplications
from .experiments.drops import barrier, counts, harmless, harmless_error_ratios, one_points, score_interval
from .experiments.gauges import gauged_errors
from .experiments.kernel_spectra import seen_taps
from .experiments.statistics import (curve_bootstrap, curves_at, informative, kendall, kendall_difference,
                                     layer_permutation_test, percentile_interval, student_interval)
from .publishing.claim_tests import deeper_in_blocks
from .publishing.claims import least_accuracy, read_claims
from .publishing.depth import depth_axis, panel_layers, places, stage
from .publishing.diagrams import Diagram, align
from .publishing.figures import CUT_STYLES, figure, layer_looks, table, value
from .publishing.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from .publishing.page import parameters
from .publishing.parameters import (CaseName, Count, CutName, DatasetName, LayerName, ModelName, Profile, Rank,
                                    Ranks, Seed, Share, Spread)
from .publishing.pictures import ONE_COLUMN, TWO_COLUMNS
from .publishing.results import about_networks, available, measured, results, scorecard, stand_in, titles
from .publishing.scorecard import pair_text
from .tensors.spectra import rank_for_error

__all__ = ["parameters", "results", "measured", "available", "about_networks", "stand_in", "titles", "scorecard", "pair_text", "figure", "table", "value", "Diagram", "align",
           "depth_axis", "panel_layers", "places", "stage", "seen_taps", "deeper_in_blocks", "least_accuracy", "read_claims", "listed_cases", "multiplications", "channel_weights",
           "CUT_STYLES", "layer_looks",
           "ONE_COLUMN", "TWO_COLUMNS", "BLACK", "BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "SKY", "VERMILION",
           "barrier", "counts", "curve_bootstrap", "curves_at", "gauged_errors", "harmless", "harmless_error_ratios",
           "informative", "kendall", "kendall_difference", "layer_permutation_test", "one_points",
           "percentile_interval", "rank_for_error", "score_interval", "student_interval", "CaseName", "Count", "CutName", "DatasetName", "LayerName",
           "ModelName", "Profile", "Rank", "Ranks", "Seed", "Share", "Spread"]
