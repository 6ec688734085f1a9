"""Figures, tables and values: what is written, what is shown, and what is refused."""

import matplotlib
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tnlib.publishing import figures

DATA = pd.DataFrame({"x": [1, 2, 3], "y": [0.1, 1 / 3, 0.5], "name": ["a", "b", "c|d"]})
ALT = "A line that rises from left to right."


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """What is displayed, as (data, metadata) pairs; files go to a temporary folder."""
    collected = []
    monkeypatch.setattr(figures, "display", lambda data, raw, metadata=None: collected.append((data, metadata)))
    monkeypatch.setattr(figures.section, "folder", tmp_path)
    return collected


def draw():
    fig, ax = plt.subplots()
    ax.plot(DATA.x, DATA.y)
    return fig


def test_a_figure_is_written_with_the_data_behind_it(shown, tmp_path):
    figures.figure(draw(), "a-line", "Some *caption*.", ALT, DATA)
    svg = (tmp_path / "figures" / "a-line.svg").read_text()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "figures" / "a-line.csv"), DATA)
    (data, metadata), = shown
    assert data["image/svg+xml"] == svg and metadata["tnlib"] == {"id": "a-line", "caption": "Some *caption*.", "alt": ALT}
    assert not plt.get_fignums()


def test_the_same_figure_is_the_same_bytes(shown, tmp_path):
    files = []
    for _ in range(2):
        figures.figure(draw(), "a-line", "Caption.", ALT, DATA)
        files.append((tmp_path / "figures" / "a-line.svg").read_bytes())
    assert files[0] == files[1] and b"<dc:date>" not in files[0]


@pytest.mark.parametrize("change, error, words", [
    ({"id": "Fig 1"}, ValueError, "lower-case words joined by hyphens"),
    ({"caption": " "}, ValueError, "caption is empty"),
    ({"alt": "a line"}, ValueError, "alt must say what is seen"),
    ({"alt": "One two three four five.", "caption": "One two three four five."}, ValueError, "other words"),
    ({"fig": "a file"}, TypeError, "matplotlib Figure, got str"),
    ({"data": None}, TypeError, "DataFrame"),
    ({"data": DATA[:0]}, TypeError, "an empty one"),
])
def test_incomplete_figures_are_refused(shown, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        figures.figure(**{"fig": draw(), "id": "a-line", "caption": "Caption.", "alt": ALT, "data": DATA} | change)
    assert not list(tmp_path.rglob("*.svg")) and not shown
    plt.close("all")


def test_a_table_is_markdown_for_the_book_and_html_for_jupyter(shown, tmp_path):
    figures.table(DATA, "a-table", "All the *values*.")
    (data, _), = shown
    assert data["text/markdown"].startswith("```{table} All the *values*.\n:name: a-table\n")
    assert "| 2 | 0.3333 | b |" in data["text/markdown"] and "c\\|d" in data["text/markdown"]
    assert "| ---: | ---: | :--- |" in data["text/markdown"]
    assert "<table" in data["text/html"]
    assert pd.read_csv(tmp_path / "figures" / "a-table.csv").y[1] == pytest.approx(1 / 3, rel=1e-8)


@pytest.mark.parametrize("number, plain", [(torch.tensor(0.5), 0.5), (DATA.y.mean(), DATA.y.mean()), (3, 3), ("x", "x")])
def test_values_reach_the_text_as_plain_numbers(monkeypatch, number, plain):
    glued = {}
    monkeypatch.setattr(figures, "glue", lambda name, number, display: glued.update({name: number}))
    figures.value("a", number)
    assert glued == {"a": plain} and type(glued["a"]) is type(plain if isinstance(plain, (int, str)) else 0.5)


def test_a_value_is_a_number_or_a_text(monkeypatch):
    with pytest.raises(TypeError, match="must be a number or a text, got list"):
        figures.value("a", [1])
