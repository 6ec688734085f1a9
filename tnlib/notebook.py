"""What the book's notebooks use beside `tnlib` itself.

    from tnlib import notebook as nb
    from tnlib.notebook import DatasetName, Profile, Seed    # the types of the parameters cell
"""

from .experiments.drops import harmless, harmless_error_ratios, one_points
from .experiments.gauges import gauged_errors
from .experiments.statistics import (curve_bootstrap, informative, kendall, kendall_difference, percentile_interval,
                                     student_interval)
from .publishing.diagrams import Diagram, align
from .publishing.figures import CUT_STYLES, figure, table, value
from .publishing.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from .publishing.page import parameters
from .publishing.parameters import (Count, CutName, DatasetName, LayerName, ModelName, Profile, Rank,
                                    Ranks, Seed, Spread)
from .publishing.results import results
from .publishing.scorecard import scorecard

__all__ = ["parameters", "results", "scorecard", "figure", "table", "value", "Diagram", "align", "CUT_STYLES",
           "BLACK", "BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "SKY", "VERMILION",
           "curve_bootstrap", "gauged_errors", "harmless", "harmless_error_ratios", "informative", "kendall",
           "kendall_difference", "one_points", "percentile_interval", "student_interval",
           "Count", "CutName", "DatasetName", "LayerName", "ModelName", "Profile", "Rank", "Ranks", "Seed", "Spread"]
