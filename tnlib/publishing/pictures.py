"""The files of a figure: on white for whoever cites it (SVG, PDF, PNG), and a second SVG for a page in the dark theme."""

import logging
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.category import StrCategoryFormatter
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_rgba, to_rgba_array
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter

from ..experiments.files import atomic_path

ONE_COLUMN, TWO_COLUMNS = 86 / 25.4, 178 / 25.4  # inches: the widths of most journals' pages
LEAST_POINTS = 7
MARGIN = 0.02  # inches that the tallest letters of a title may reach beyond the layout's edge: nothing is lost in print
CANVASES = {"svg": FigureCanvasSVG, "pdf": FigureCanvasPdf, "png": FigureCanvasAgg}
FORMATS = tuple(CANVASES)
RESOLUTION = 300  # dots per inch of the PNG
logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of the dates of matplotlib's own fonts
NAMES = (FixedFormatter, FuncFormatter, StrCategoryFormatter)  # of an axis whose ticks are names, not numbers
AS_IT_IS = "as it is"  # the gid of what the dark theme leaves alone, such as a text on a coloured shape
DARK, LIGHT = to_rgba_array("#14181e")[0, :3], to_rgba_array("#ced6dd")[0, :3]  # the theme's page and text when dark


def check_picture(fig: plt.Figure, data: pd.DataFrame) -> None:
    """Raise `ValueError` where `fig` is no journal's width, has text too small to print, is cut off at an edge, or plots what
    is not in `data`. Its layout is final from then on.
    """
    width = fig.get_figwidth()
    if not any(abs(width - column) < 0.005 for column in (ONE_COLUMN, TWO_COLUMNS)):
        raise ValueError(f"a figure is nb.ONE_COLUMN or nb.TWO_COLUMNS wide (86 or 178 mm), this one {25.4 * width:.0f} mm")
    for text in fig.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text.get_fontsize() < LEAST_POINTS:
            raise ValueError(f"text of {text.get_fontsize():g} points is too small to print, at least {LEAST_POINTS} is "
                             f"needed: {text.get_text()!r}")
    if (missing := not_in_data(fig, data)).size:
        raise ValueError(f"data lacks {len(missing)} of the values that are plotted, {missing[0]:.6g} for one")
    if (layout := fig.get_layout_engine()) is not None:
        layout.execute(fig)
        fig.set_layout_engine("none")  # once for all files: the layout is most of the work
    drawn, (width, height) = fig.get_tightbbox(), fig.get_size_inches()
    beyond = {"left": -drawn.x0, "lower": -drawn.y0, "right": drawn.x1 - width, "upper": drawn.y1 - height}
    edge = max(beyond, key=beyond.get)
    if beyond[edge] > MARGIN:
        raise ValueError(f"it is cut off at its {edge} edge, by {25.4 * beyond[edge]:.1f} mm: shorten a text there, or make room")


def write_pictures(fig: plt.Figure, folder: Path, id: str, about: dict[str, str]) -> list[str]:
    """Write `id`.svg, .pdf, .png and .dark.svg, the same bytes from the same figure; return the names of the first three.

    `about`: what each file says of itself: `title, author, description, licence, source`. `fig` is left in dark colours.
    """
    plt.rcParams["svg.hashsalt"] = id  # or the identifiers in it would be drawn by lot
    notes = {
        "svg": {"Title": about["title"], "Creator": about["author"], "Description": about["description"],
                "Rights": about["licence"], "Source": about["source"], "Identifier": id, "Date": None},
        "pdf": {"Title": about["title"], "Author": about["author"], "Subject": about["description"], "Creator": about["source"],
                "Keywords": f"{id}; {about['licence']}", "CreationDate": None},
        "png": {"Title": about["title"], "Author": about["author"], "Description": about["description"],
                "Copyright": about["licence"], "Source": about["source"], "Identifier": id}}
    names = [f"{id}.{kind}" for kind in FORMATS]
    for kind, name in zip(FORMATS, names):
        _write(fig, folder / name, kind, notes[kind])
    _darken(fig)
    fig.patch.set_facecolor("none")
    _write(fig, folder / f"{id}.dark.svg", "svg", notes["svg"])
    return names


def _write(fig, path, kind, notes):
    """As `savefig` does, which draws a figure twice where it once had a layout engine."""
    fig.dpi = RESOLUTION  # each time: SVG and PDF leave it at 72
    with atomic_path(path) as temporary:
        getattr(CANVASES[kind](fig), f"print_{kind}")(temporary, metadata=notes)


# ---- is what is plotted in the data? -------------------------------------------------------------------------------

def not_in_data(fig: plt.Figure, data: pd.DataFrame) -> np.ndarray:
    """The plotted values that no number of `data` equals, as it is or in per cent, to what its CSV holds: nine digits.

    Looked at: the points of lines and of scatters on every axis that counts (not one with names for ticks), the ends of
    bars, and the cells of maps. Not: what has no axes (diagrams and pictures), lines across the axes, error bars, areas.
    """
    there = data.select_dtypes("number").to_numpy(dtype=float, na_value=np.nan).ravel()
    there = np.unique([*there[np.isfinite(there)], 0.0, np.inf])  # 0: where bars begin
    values = np.concatenate([np.zeros(0), *(np.asarray(found, dtype=float).ravel() for found in _plotted(fig))])
    values = values[np.isfinite(values)]
    return values[~(_among(values, there) | _among(values / 100, there))]


def _among(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Which of `values` are in `there`, which is sorted."""
    after = np.searchsorted(there, values).clip(1, len(there) - 1)
    near = np.minimum(np.abs(there[after - 1] - values), np.abs(there[after] - values))
    return near <= 1e-7 * np.maximum(1e-3, np.abs(values))


def _plotted(fig):
    for ax in fig.axes:
        if ax.get_label() == "<colorbar>" or not ax.axison:
            continue
        counts = [not isinstance(axis.get_major_formatter(), NAMES) for axis in (ax.xaxis, ax.yaxis)]
        caps = [cap for found in ax.containers if isinstance(found, ErrorbarContainer) for cap in found.lines[1]]
        for line in ax.lines:
            if line.get_transform() == ax.transData and line not in caps:
                yield from (of for of, counting in zip(line.get_data(orig=False), counts) if counting)
        for found in ax.collections:
            if isinstance(found, PathCollection):
                yield from (of for of, counting in zip(np.ma.filled(found.get_offsets(), np.nan).T, counts) if counting)
            if isinstance(found, QuadMesh):
                yield np.ma.filled(found.get_array().astype(float), np.nan)
        for found in ax.containers:
            if isinstance(found, BarContainer):
                yield [bar.get_x() + bar.get_width() if found.orientation == "horizontal" else bar.get_y() + bar.get_height()
                       for bar in found]
        for image in ax.images:
            if image.get_array().ndim == 2:
                yield np.ma.filled(image.get_array().astype(float), np.nan)


# ---- the dark theme ------------------------------------------------------------------------------------------------

def _darken(fig: plt.Figure) -> None:
    """Turn greys round between the page and its text, and lighten dark colours; maps and what is on them stay."""
    on_maps = {id(text) for ax in fig.axes if ax.images or any(isinstance(c, QuadMesh) for c in ax.collections) for text in ax.texts}
    for ax in fig.axes:
        ax.patch.set_facecolor("none")
    for artist in fig.findobj(lambda artist: artist.get_gid() != AS_IT_IS and id(artist) not in on_maps):
        if getattr(artist, "get_array", lambda: None)() is not None:
            continue  # its colours are its values
        for part in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            if not hasattr(artist, f"get_{part}") or (part == "color" and isinstance(artist, (PathCollection, LineCollection))):
                continue
            before = getattr(artist, f"get_{part}")()
            if isinstance(before, str) and before in ("none", "auto"):
                continue
            colors = [_dark(color) for color in to_rgba_array(before)]
            getattr(artist, f"set_{part}")(colors[0] if len(colors) == 1 else colors)


def _dark(color):
    red, green, blue, alpha = to_rgba(color)
    rgb = np.array([red, green, blue])
    if np.ptp(rgb) < 0.03:
        rgb = LIGHT + (DARK - LIGHT) * rgb.mean()
    elif rgb @ (0.21, 0.72, 0.07) < 0.4:
        rgb = rgb + 0.35 * (1 - rgb)
    return (*rgb, alpha)
