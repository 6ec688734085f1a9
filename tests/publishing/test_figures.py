"""Figures, tables and values: what is written, what is shown, and what is refused."""

import json
import re
from importlib.metadata import version

import matplotlib
import pandas as pd
import pypdf
import pytest
import torch
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tnlib.experiments.weights import find_weights, read_card
from tnlib.publishing import cards, figures
from tnlib.publishing.pictures import AS_IT_IS, ONE_COLUMN, TWO_COLUMNS, check_picture, not_in_data
from tnlib.publishing.results import results
from tnlib.publishing.section import open_section, section

DATA = pd.DataFrame({"x": [1, 2, 3], "y": [0.1, 1 / 3, 0.5], "name": ["a", "b", "c|d"]})
ALT = "A line that rises from left to right."
FROM = {"sources": ("weights",), "claims": ("1a",)}


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """What is displayed, as (data, metadata) pairs; files go to a temporary folder."""
    collected = []
    monkeypatch.setattr(figures, "display", lambda data, raw, metadata=None: collected.append((data, metadata)))
    monkeypatch.setenv("TNLIB_OUTPUT", str(tmp_path))
    with plt.rc_context():
        open_section("spectra", "spectra", {"model": "vanilla", "dataset": "shapes", "seed": 0}, {"dataset": "shapes"})
        yield collected
    section.__init__()


def draw(width=ONE_COLUMN):
    fig, ax = plt.subplots(figsize=(width, 2))
    ax.plot(DATA.x, DATA.y, color="black")
    return fig


def test_a_figure_is_written_with_the_data_behind_it(shown, tmp_path):
    figures.figure(draw(), "a-line", "Some *caption*.", ALT, DATA, **FROM)
    svg = (tmp_path / "figures" / "a-line.svg").read_text()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "figures" / "a-line.csv"), DATA)
    (data, metadata), = shown
    assert data["image/svg+xml"] == svg and metadata["tnlib"] == {"id": "a-line", "caption": "Some *caption*.", "alt": ALT}
    assert not plt.get_fignums()


def test_the_same_figure_is_the_same_bytes(shown, tmp_path):
    files = []
    for _ in range(2):
        figures.figure(draw(), "a-line", "Caption.", ALT, DATA, **FROM)
        files.append({path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()})
    assert files[0] == files[1]
    assert set(files[0]) == {f"a-line.{kind}" for kind in ("svg", "dark.svg", "pdf", "png", "csv", "json")}


@pytest.mark.parametrize("width, millimetres", [(ONE_COLUMN, 86), (TWO_COLUMNS, 178)])
def test_files_are_as_wide_as_a_column_or_two_and_say_what_they_are(shown, tmp_path, width, millimetres):
    figures.figure(draw(width), "a-line", "Caption.", ALT, DATA, **FROM)
    folder = tmp_path / "figures"
    pdf, png, svg = pypdf.PdfReader(folder / "a-line.pdf"), Image.open(folder / "a-line.png"), (folder / "a-line.svg").read_text()
    assert float(pdf.pages[0].mediabox.width) / 72 * 25.4 == pytest.approx(millimetres, abs=0.1)
    assert png.width / 300 * 25.4 == pytest.approx(millimetres, abs=0.1)
    assert float(re.search(r'<svg[^>]* width="([0-9.]+)pt"', svg)[1]) / 72 * 25.4 == pytest.approx(millimetres, abs=0.1)
    assert png.getpixel((0, 0))[:3] == (255, 255, 255)
    for notes in (dict(pdf.metadata), png.info, svg):
        notes = str(notes)
        assert "a-line" in notes and "CC-BY-4.0" in notes and "2403.14379" in notes
        assert not re.search(r"CreationDate|dc:date", notes)


def test_text_in_the_pdf_is_text_in_a_font_that_editors_take(shown, tmp_path):
    figures.figure(draw(), "a-line", "Caption.", ALT, DATA, **FROM)
    page = pypdf.PdfReader(tmp_path / "figures" / "a-line.pdf").pages[0]
    fonts = [font.get_object() for font in page["/Resources"]["/Font"].values()]
    assert fonts and all(font["/Subtype"] != "/Type3" for font in fonts)
    assert "1.25" in page.extract_text()


def test_the_card_names_what_the_figure_was_made_from(shown, tmp_path):
    results("spectra", "vanilla", "shapes", shuffled=False)
    figures.figure(draw(), "a-line", "Caption.", ALT, DATA, sources=("spectra", "weights"), claims=("1a", "2"))
    card = json.loads((tmp_path / "figures" / "a-line.json").read_text())
    weights = read_card(find_weights("vanilla", "shapes"))
    assert card["claims"] == ["1a", "2"] and card["section"] == "spectra" and card["parameters"]["dataset"] == "shapes"
    assert [source["what"] for source in card["sources"]] == ["spectra", "weights"]
    for source in card["sources"]:
        assert source["file"] == "published/weights/vanilla-shapes-s0.safetensors" and source["sha256"] == weights["sha256"]
    assert card["files"] == ["a-line.svg", "a-line.pdf", "a-line.png", "a-line.csv"]
    assert card["versions"]["torch"] == version("torch") and card["licence"] == "CC-BY-4.0"


def test_the_card_names_tables_of_the_data_sets_that_are_drawn_alone(shown, tmp_path):
    """A page may have read those of a second one, too."""
    for name in ("cifar100", "cifar10"):
        results("controls", "vanilla", name)
        results("truncation", "vanilla", name)
    section.values["dataset"] = "cifar10"
    drawn = {"of-one": DATA, "of-both": DATA.assign(dataset=["cifar10", "cifar100", "cifar10"]), "of-the-other": DATA.assign(dataset="cifar100")}
    for (id, data), expected in zip(drawn.items(), ({"cifar10"}, {"cifar10", "cifar100"}, {"cifar100"})):
        figures.figure(draw(), id, "Caption.", ALT, data, sources=("truncation",), claims=())
        found = json.loads((tmp_path / "figures" / f"{id}.json").read_text())["sources"]
        assert {source["dataset"] for source in found} == expected
        for source in found:
            assert f"-{source['dataset']}-s{source['seed']}.csv" in source["file"]
            assert source["weights"] == read_card(find_weights("vanilla", source["dataset"], source["seed"]))["sha256"]


@pytest.mark.parametrize("sources, added", [(("controls",), " Evaluated on 5,000 class-balanced test images."),
                                            (("controls", "truncation"), " In part evaluated on 5,000 class-balanced test images."),
                                            (("truncation",), ""), (("weights",), "")])
def test_a_caption_says_on_how_many_images_where_they_are_not_all(shown, tmp_path, sources, added):
    section.values["dataset"] = "cifar10"
    for experiment in ("controls", "truncation"):
        results(experiment, "vanilla", "cifar10")
    figures.figure(draw(), "a-line", "Caption.", ALT, DATA, sources=sources, claims=())
    figures.table(DATA, "a-table", "Caption.", sources=sources, claims=())
    for id in ("a-line", "a-table"):
        assert json.loads((tmp_path / "figures" / f"{id}.json").read_text())["caption"] == f"Caption.{added}"
    (_, metadata), (data, _) = shown
    assert metadata["tnlib"]["caption"] == f"Caption.{added}" and f"{{table}} Caption.{added}\n" in data["text/markdown"]


def test_on_a_dark_page_greys_are_turned_round_and_marked_artists_stay(shown, tmp_path):
    fig = draw()
    fig.axes[0].plot(DATA.x, DATA.y, color="#010203", gid=AS_IT_IS)
    figures.figure(fig, "a-line", "Caption.", ALT, DATA, **FROM)
    light, dark = ((tmp_path / "figures" / name).read_text() for name in ("a-line.svg", "a-line.dark.svg"))
    assert "#ffffff" in light and "stroke: #000000" in light
    assert not re.search(r"#ffffff|#fff\b|(stroke|fill): #000000", dark) and "#010203" in dark


# ---- is what is plotted in the data? -------------------------------------------------------------------------------

def axes(**options):
    return plt.subplots(figsize=(ONE_COLUMN, 2), **options)


def a_line(ax):
    ax.plot([1, 2, 3], DATA.y)


def a_scatter(ax):
    ax.scatter(DATA.x, DATA.y)


def bars(ax):
    ax.bar(["a", "b", "c"], DATA.y)


def bars_across(ax):
    ax.barh(["a", "b", "c"], DATA.y)


def a_map(ax):
    ax.figure.colorbar(ax.pcolormesh(DATA.y.to_numpy()[None]))


def a_picture(ax):
    ax.imshow(DATA.y.to_numpy()[None])


def with_bars(ax):
    ax.errorbar(DATA.x, DATA.y, yerr=0.0123, capsize=2)
    ax.axhline(0.77)
    ax.axline((0, 0), slope=1)


@pytest.mark.parametrize("plot", [a_line, a_scatter, bars, bars_across, a_map, a_picture, with_bars], ids=lambda plot: plot.__name__)
def test_every_plotted_value_is_looked_for_in_the_data(plot):
    fig, ax = axes()
    plot(ax)
    assert not_in_data(fig, DATA).size == 0
    other = DATA.assign(y=[0.1, 0.3333, 0.5])
    assert not_in_data(fig, other).tolist() == pytest.approx([1 / 3])
    with pytest.raises(ValueError, match="data lacks 1 of the values that are plotted, 0.333333"):
        check_picture(fig, other)
    plt.close(fig)


def test_places_on_an_axis_with_names_are_no_values():
    fig, ax = axes()
    ax.plot([0.05, 1.05, 2.05], DATA.y)
    assert not_in_data(fig, DATA).tolist() == pytest.approx([0.05, 1.05, 2.05])
    ax.set_xticks(range(3), ["one", "two", "three"])
    assert not_in_data(fig, DATA).size == 0
    plt.close(fig)
    fig, ax = axes()
    ax.plot(["one", "two", "three"], DATA.y)
    assert not_in_data(fig, DATA).size == 0
    plt.close(fig)


@pytest.mark.parametrize("width, size, words", [(7, 9, "86 or 178 mm"), (ONE_COLUMN, 6.9, "6.9 points")])
def test_what_does_not_fit_a_journal_is_refused(width, size, words):
    fig = draw(width)
    fig.axes[0].set_title("a title", fontsize=size)
    with pytest.raises(ValueError, match=words):
        check_picture(fig, DATA)
    plt.close(fig)


@pytest.mark.parametrize("place, edge", [({"x": 1.2, "y": 0.5}, "right"), ({"x": -0.5, "y": 0.5, "ha": "right"}, "left"),
                                         ({"x": 0.5, "y": 1.4}, "upper"), ({"x": 0.5, "y": -0.5}, "lower")], ids=lambda value: str(value))
def test_what_is_cut_off_at_an_edge_is_refused(place, edge):
    check_picture(draw(), DATA)
    fig = draw()
    fig.axes[0].text(**place, s="some words that go on", transform=fig.axes[0].transAxes)
    with pytest.raises(ValueError, match=f"cut off at its {edge} edge, by .* mm"):
        check_picture(fig, DATA)
    plt.close("all")


@pytest.mark.parametrize("change, error, words", [
    ({"id": "Fig 1"}, ValueError, "lower-case words joined by hyphens"),
    ({"caption": " "}, ValueError, "caption is empty"),
    ({"alt": "a line"}, ValueError, "alt must say what is seen"),
    ({"alt": "One two three four five.", "caption": "One two three four five."}, ValueError, "other words"),
    ({"fig": "a file"}, TypeError, "matplotlib Figure, got str"),
    ({"data": None}, TypeError, "DataFrame"),
    ({"data": DATA[:0]}, TypeError, "an empty one"),
    ({"data": DATA[["x"]]}, ValueError, "figure 'a-line': data lacks 3 of the values"),
    ({"claims": ("7",)}, ValueError, "must be a tuple of 1a, 1b, 2"),
    ({"claims": "2"}, ValueError, "must be a tuple"),
    ({"sources": ("noise",)}, ValueError, "what this page has read .weights., got .'noise',."),
])
def test_incomplete_figures_are_refused(shown, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        figures.figure(**{"fig": draw(), "id": "a-line", "caption": "Caption.", "alt": ALT, "data": DATA} | FROM | change)
    assert not list(tmp_path.rglob("*.json")) and not shown
    plt.close("all")


def test_a_table_is_markdown_for_the_book_and_html_for_jupyter(shown, tmp_path):
    figures.table(DATA, "a-table", "All the *values*.", **FROM)
    (data, _), = shown
    assert data["text/markdown"].startswith("```{table} All the *values*.\n:name: a-table\n")
    assert "| 2 | 0.3333 | b |" in data["text/markdown"] and "c\\|d" in data["text/markdown"]
    assert "| ---: | ---: | :--- |" in data["text/markdown"]
    assert "<table" in data["text/html"]
    assert pd.read_csv(tmp_path / "figures" / "a-table.csv").y[1] == pytest.approx(1 / 3, rel=1e-8)
    card = json.loads((tmp_path / "figures" / "a-table.json").read_text())
    assert card["kind"] == "table" and card["files"] == ["a-table.csv"]


@pytest.mark.parametrize("number, plain", [(torch.tensor(0.5), 0.5), (DATA.y.mean(), DATA.y.mean()), (3, 3), ("x", "x")])
def test_values_reach_the_text_as_plain_numbers(monkeypatch, number, plain):
    glued = {}
    monkeypatch.setattr(figures, "glue", lambda name, number, display: glued.update({name: number}))
    figures.value("a", number)
    assert glued == {"a": plain} and type(glued["a"]) is type(plain if isinstance(plain, (int, str)) else 0.5)


def test_a_value_is_a_number_or_a_text(monkeypatch):
    with pytest.raises(TypeError, match="must be a number or a text, got list"):
        figures.value("a", [1])


def test_eight_layers_look_different_in_colour_and_in_grey_and_then_looks_come_again():
    looks = figures.layer_looks(f"conv{k}" for k in range(1, 11))
    assert len(looks) == 10 and looks["conv9"] == looks["conv1"] and looks["conv10"] == looks["conv2"]
    for part in (0, 1):  # colour, marker
        assert len({look[part] for look in looks.values()}) == 8


def test_the_card_says_what_differs_from_the_published_figure_and_its_place_on_the_page(shown, tmp_path):
    for id in ("a-first", "a-second", "a-first"):  # a cell that is run again
        figures.figure(draw(), id, "Caption.", ALT, DATA, **FROM)
    first, second = (json.loads((tmp_path / "figures" / f"{id}.json").read_text()) for id in ("a-first", "a-second"))
    assert (first["place"], second["place"]) == (0, 1)
    assert first["changed"] == {"dataset": "shapes"} and "figure a-first with dataset = shapes" in cards.sentence(first)


def test_the_card_names_the_weights_of_the_seed_of_the_page(shown, tmp_path):
    section.values.update(dataset="cifar10", seed=3)
    figures.figure(draw(), "a-line", "Caption.", ALT, DATA, **FROM)
    (source,) = json.loads((tmp_path / "figures" / "a-line.json").read_text())["sources"]
    assert source["file"] == "published/weights/vanilla-cifar10-s3.safetensors" and source["seed"] == 3


def test_what_is_read_twice_is_one_source(shown, tmp_path):
    for _ in range(2):
        results("controls", "vanilla", "cifar10")
    section.values["dataset"] = "cifar10"
    figures.figure(draw(), "a-line", "Caption.", ALT, DATA, sources=("controls",), claims=())
    files = [source["file"] for source in json.loads((tmp_path / "figures" / "a-line.json").read_text())["sources"]]
    assert files and len(files) == len(set(files))


def test_the_card_names_what_is_drawn_of_a_data_set_that_is_a_file(shown, monkeypatch):
    monkeypatch.setitem(section.values, "dataset", "/somewhere/mine.npz")
    monkeypatch.setitem(section.read, "noise", ["mine", "cifar10"])
    monkeypatch.setattr(cards, "_source", lambda what, name: {"what": what, "dataset": name})
    for data in (DATA, DATA.assign(dataset="/somewhere/mine.npz")):
        assert cards.drawn_from(("noise",), data) == [{"what": "noise", "dataset": "mine"}]


def test_a_new_page_has_read_nothing_yet(shown):
    results("spectra", "vanilla", "shapes", shuffled=False)
    open_section("networks", "networks", {"model": "vanilla"}, {})
    assert section.read == {} and section.made == []
