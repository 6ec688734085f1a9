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
from .publishing.results import available, measured, results, scorecard, second_network, source
from .publishing.scorecard import pair_text
from .publishing.words import about_networks, listed, several, signed, stand_in, titles
from .tensors.spectra import rank_for_error
