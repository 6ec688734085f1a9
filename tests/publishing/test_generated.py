"""What pages say of the book itself: filled in at every build, from notebooks, cards and the records of runs."""

import io
import re

import nbformat
import pandas as pd
import pytest

from tnlib.experiments.datasets import NAMES
from tnlib.experiments.files import PUBLISHED, ROOT, sha256_of, write_json
from tnlib.experiments.networks import NETWORKS
from tnlib.experiments.weights import published_networks
from tnlib.publishing import generated, running
from tnlib.publishing.generated import GENERATED, SiteError, costs, fill, modules, parameters, retrained, status, trained
from tnlib.publishing.jobs import Job, Section, sections
from tnlib.publishing.parameters import Types
from tnlib.publishing.site import _with_banner

PROVENANCE = {"started": "2026-11-24T20:26:41+00:00", "git_commit": "0123456789abcdef", "device": "A CPU(R), 2 cores",
              "threads": 1, "platform": "Linux", "versions": {"python": "3.11.7", "torch": "2.13.0"}}


def tables(text):
    """The tables of a generated text, each as frames of its cells."""
    bodies = re.findall(r"```\{csv-table\}\n:header-rows: 1\n:class: generated\n\n(.*?)```$", text, re.M | re.S)
    return [pd.read_csv(io.StringIO(body), dtype=str) for body in bodies]


def test_a_mark_is_replaced_and_the_rest_is_left(monkeypatch):
    monkeypatch.setitem(GENERATED, "names", lambda jobs: r"made of \1 " + ", ".join(jobs))
    text = "# A page\n\n% generated: names\n\n% a comment\nand `% generated: names` in a line"
    assert fill(text, ["a", "b"]) == text.replace("% generated: names\n", "made of \\1 a, b\n", 1)


def test_an_unknown_name_is_refused():
    with pytest.raises(SiteError, match="'nmaes', which is not generated: there are gallery, parameters, trained, retrained, costs"):
        fill("% generated: nmaes\n", [])


@pytest.mark.parametrize("page", sorted((ROOT / "book").glob("*.md")), ids=lambda path: path.stem)
def test_pages_ask_for_what_is_generated(page):
    assert set(re.findall(r"^% generated: (.*)$", page.read_text(encoding="utf-8"), re.M)) <= GENERATED.keys()


def test_every_parameter_of_every_chapter_and_every_type():
    jobs = [Job(section, {}, section.path.parent) for section in sections().values()]
    rows, types = tables(parameters(jobs))
    declared = [(f"`{name}`", f"`{p.name}`", f"`{p.type}`", f"`{p.default!r}`", p.help)
                for name, section in sections().items() for p in section.parameters.values()]
    assert list(rows.columns) == ["section", "name", "type", "default", "meaning"]
    assert list(rows.itertuples(index=False, name=None)) == declared
    takes = {kind.strip("`"): words for kind, words in types.itertuples(index=False, name=None)}
    assert takes.keys() == {kind.strip("`") for kind in rows["type"]} <= Types.keys()
    assert all(f"`{name}`" in takes["ModelName"] for name in NETWORKS)
    assert all(f"`{name}`" in takes["DatasetName"] for name in NAMES)
    assert takes["Seed"] == "a whole number at least 0 and below 2,147,483,648"
    assert takes["Spread"] == "a number above 0 and at most 5"
    assert takes["Ranks"] == "a list of 1 to 20, each a whole number at least 1"
    assert takes["Profile"] == "one of `published`, `shapes`, `full`"


def network_card(model, seed, test_accuracy, **more):
    return {"model": model, "dataset": "cifar10", "seed": seed, "architecture": {"channels": [4, 5], "classes": 10},
            "parameters": 1234567, "recipe": {"epochs": 24, "weight_decay": 0.0005}, "images": {"train": 45_000},
            "test_accuracy": test_accuracy, "train_accuracy": 0.9} | more


def test_trained_networks_are_those_of_the_cards(monkeypatch):
    """84 % is what a verdict on vanilla and CIFAR-10 takes: of every network, not of their mean."""
    cards = [network_card("vanilla", 0, 0.86), network_card("vanilla", 1, 0.85),
             network_card("vanilla", 2, 0.99, recipe={"epochs": 5, "weight_decay": 0.0}),
             network_card("resnet50", 3, 0.895, architecture={"stem": "s2", "blocks": [1, 2], "image_size": 32})]
    monkeypatch.setattr(generated, "published_networks", lambda: cards)
    (table,) = tables(trained([]))
    assert table.to_numpy().tolist() == [
        ["vanilla", "cifar10", "channels 4, 5", "1,234,567", "24", "45,000", "0.0005", "0, 1",
         "85.5 ± 0.7", "90.0 ± 0.0"],
        ["vanilla", "cifar10", "channels 4, 5", "1,234,567", "5", "45,000", "0", "2", "99.0", "90.0"],
        ["resnet50", "cifar10", "stem s2; blocks 1, 2", "1,234,567", "24", "45,000", "0.0005", "3",
         "89.5 *reduced*", "90.0"]]
    cards[1] |= {"test_accuracy": 0.839}
    assert tables(trained([]))[0]["test, %"][0].endswith(" *reduced*")


def test_every_published_network_is_in_the_table():
    (table,) = tables(trained([]))
    assert sum(len(seeds.split(", ")) for seeds in table["seeds"]) == len(published_networks())


def test_outcomes_of_re_training_are_those_of_the_tables():
    (table,) = tables(retrained([]))
    rows, seen = table.set_index(["network", "data", "seed", "epochs", "cut", "down to"]), 0
    assert rows.index.is_unique
    for path in sorted((PUBLISHED / "results").glob("retraining-*.csv")):
        runs = pd.read_csv(path)
        if "statistics" in path.name:
            continue
        last, (network,) = runs.epoch.max(), set(zip(runs.model, runs.dataset, runs.seed))
        truncated = runs.get("truncated", pd.Series("all", runs.index))
        percent = lambda found: pytest.approx(100 * found.correct.item() / found.images.item(), abs=0.051)
        alone = runs[runs.cut == "none"].set_index(["arm", "epoch"])
        for (layer, cut, strength), case in runs[runs.cut != "none"].groupby([truncated, "cut", "strength"]):
            row = rows.loc[(*map(str, network), str(last), cut if layer == "all" else f"{cut} of {layer}", f"{100 * strength:g} %")]
            case, seen = case.set_index(["arm", "epoch"]), seen + 1
            for head, found, run in [("truncated", case, ("free", 0)), ("noise, before", case, ("noise", 0)), ("before", alone, ("continued", 0)), ("continued", alone, ("continued", last)),
                                     ("scratch", alone, ("scratch", last)), ("free", case, ("free", last)), ("rank kept", case, ("kept", last)),
                                     ("noise", case, ("noise", last))]:
                if run in found.index:
                    assert float(row[head]) == percent(found.loc[[run]]), (path.name, head)
                else:  # an arm that is not measured yet, or not asked for of this table
                    assert row[head] == "–" and head in ("free", "rank kept", "noise", "noise, before", "scratch")
    assert len(table) == seen > 0


def test_a_layer_that_is_truncated_alone_is_named_in_the_table(tmp_path, monkeypatch):
    rows = [(layer, cut, arm, epoch, accuracy) for layer, cut, arm, accuracy in [
        ("none", "none", "continued", 0.9), ("conv1", "OUT", "free", 0.5), ("conv2", "OUT", "free", 0.6)] for epoch in (0, 1)]
    path = tmp_path / "results" / "retraining-layers-vanilla-cifar10-s0.csv"
    path.parent.mkdir()
    runs = pd.DataFrame(rows, columns=["truncated", "cut", "arm", "epoch", "accuracy"]).assign(strength=0.5)
    runs["strength"] = runs["strength"].where(runs["cut"] != "none", 1.0)
    runs.to_csv(path, index=False)
    write_json(path.with_suffix(".json"), {"experiment": "retraining-layers", "model": "vanilla", "dataset": "cifar10", "seed": 0,
                                           "sha256": sha256_of(path)})
    monkeypatch.setattr(generated, "PUBLISHED", tmp_path)
    (table,) = tables(retrained([]))
    assert table[["cut", "truncated", "free", "continued", "noise"]].values.tolist() == [
        ["OUT of conv1", "50.0", "50.0", "90.0", "–"], ["OUT of conv2", "60.0", "60.0", "90.0", "–"]]


def card_of(folder, seed, rows, *calls):
    (folder / "results").mkdir(exist_ok=True)
    path = folder / "results" / f"noise-vanilla-cifar10-s{seed}"
    path.with_suffix(".csv").write_text("x\n")
    write_json(path.with_suffix(".json"), {"experiment": "noise", "model": "vanilla", "dataset": "cifar10", "rows": rows, "sha256": "",
                                           "calls": [PROVENANCE | call for call in calls]})


def test_costs_by_network_and_machine_without_what_was_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "PUBLISHED", tmp_path)
    monkeypatch.setattr(generated, "published_networks", lambda: [
        PROVENANCE | {"model": "vanilla", "dataset": "shapes", "recipe": {"epochs": 6}, "train_seconds": 600.0, "threads": 2}])
    card_of(tmp_path, 0, 1200, {"seconds": 6000.0}, {"seconds": 600.0})
    card_of(tmp_path, 1, 240, {"seconds": 600.0})
    card_of(tmp_path, 2, 240, {}, {"seconds": 60.0})
    card_of(tmp_path, 3, 240, {"device": "A GPU"})
    text = costs([])
    assert tables(text)[0].to_numpy().tolist() == [
        ["`train`", "vanilla", "shapes", "1", "6 epochs", "10.0", "A CPU, 2 cores; 2 threads"],
        ["`measure noise`", "vanilla", "cifar10", "3", "240 to 1200 rows", "10.0 to 110.0 (2 of 3)", "A CPU, 2 cores; 1 thread"],
        ["`measure noise`", "vanilla", "cifar10", "1", "240 rows", "not recorded", "A GPU; 1 thread"]]
    assert "Together these are 2 hours" in text


def test_costs_count_every_published_network_and_table():
    (table,) = tables(costs([]))
    assert table["times"].astype(int).sum() == len(published_networks()) + len(list((PUBLISHED / "results").glob("*.csv")))


@pytest.fixture
def job_of(tmp_path, monkeypatch):
    """A function that makes the job of a notebook that has run, with this in its record."""
    monkeypatch.setattr(running, "_published", lambda: "same")
    monkeypatch.setattr(generated, "git_commit", lambda: "fedcba9876543210+changes")

    def make(name, **more):
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(nbformat.v4.new_notebook(), path)
        job = Job(Section(name, path), {}, tmp_path / name)
        write_json(job.folder / "run.json", PROVENANCE | {"seconds": 38.4, "parameters": {}, "changed": {}} | more)
        write_json(job.folder / "stamp.json", running._stamp(job))
        return job

    return make


def test_status_is_that_of_the_records(job_of):
    jobs = [job_of("spectra"), job_of("noise", seconds=200.1, changed={"rank": 5, "cut": "OUT"}, git_commit=None)]
    text = status(jobs)
    runs, machines = tables(text)
    assert "put together at commit `fedcba9876` and changes." in text
    assert runs.map(lambda cell: cell.replace("\u00a0", " ")).to_numpy().tolist() == [
        ["[spectra](spectra.ipynb)", "38 s", "published", "2026-11-24 20:26", "`0123456789`", "up to date"],
        ["[noise](noise.ipynb)", "3 min 20 s", "`rank = 5`, `cut = 'OUT'`", "2026-11-24 20:26",
         "unknown (not a git checkout)", "up to date"]]
    assert machines.to_numpy().tolist() == [["all", "python 3.11.7, torch 2.13.0", "A CPU, 2 cores; 1 thread; Linux"]]


def test_every_page_of_a_book_that_is_not_the_published_one_says_so(job_of):
    page = "(label)=\n# Title\n\nWords\n\n# Another\n"
    assert _with_banner(page, [job_of("spectra")]) == page
    found = _with_banner(page, [job_of("spectra"), job_of("noise", changed={"rank": 5, "dataset": "shapes"})])
    assert found.startswith("(label)=\n# Title\n\n```{warning}\nThis is not the published book: it was made with `rank = 5`, `dataset = 'shapes'`. "
                            "What the text says in words alone was written for the published one.\n```\n")
    assert found.endswith("\n\nWords\n\n# Another\n") and found.count("warning") == 1


def test_a_notebook_shown_as_it_last_ran_says_so_and_machines_are_told_apart(job_of, monkeypatch):
    jobs = [job_of("spectra"), job_of("noise", versions={"python": "3.12.1"})]
    jobs[0].section.path.write_text(jobs[0].section.path.read_text() + "\n")
    runs, machines = tables(status(jobs))
    assert runs["shown"].tolist() == ["as it last ran; since then: its text changed", "up to date"]
    assert machines["notebooks"].tolist() == ["spectra", "noise"]
    assert machines["versions"].tolist() == ["python 3.11.7, torch 2.13.0", "python 3.12.1"]


def test_a_notebook_that_never_ran_has_no_status(tmp_path):
    with pytest.raises(FileNotFoundError, match="run.json"):
        status([Job(Section("spectra", tmp_path / "spectra.ipynb"), {}, tmp_path)])


def test_every_module_is_described():
    (table,) = tables(modules([]))
    empty = {path for path in (ROOT / "tnlib").rglob("*.py") if not path.read_text(encoding="utf-8").strip()}
    there = {f"`{path.relative_to(ROOT).as_posix()}`" for path in set((ROOT / "tnlib").rglob("*.py")) - empty}
    assert set(table["module"]) == there
    assert all(words.endswith(".") and len(words) < 250 for words in table["what it is"]), "a sentence each"
