"""What the book's notebooks use beside `tnlib` itself.

    from tnlib import notebook as nb
    from tnlib.notebook import DatasetName, Profile, Seed    # the types of the parameters cell
"""

from .publishing.diagrams import Diagram, align
from .publishing.figures import CUT_STYLES, figure, table, value
from .publishing.figures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION
from .publishing.page import parameters
from .publishing.parameters import (Count, CutName, DatasetName, LayerName, ModelName, Profile, Rank,
                                    Ranks, Seed, Spread)
from .publishing.results import results

__all__ = ["parameters", "results", "figure", "table", "value", "Diagram", "align", "CUT_STYLES",
           "BLACK", "BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "SKY", "VERMILION",
           "Count", "CutName", "DatasetName", "LayerName", "ModelName", "Profile", "Rank", "Ranks", "Seed", "Spread"]
