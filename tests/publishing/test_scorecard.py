"""The scorecard of what is published: read whole or refused, evaluated as by hand, printed as it is."""

import dataclasses
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from tests.publishing.claims_cases import compression_of, paths_of, retraining_of
from tnlib.cli import main
from tnlib.experiments.drops import score_interval
from tnlib.experiments import catalogue, files, tables
from tnlib.experiments.files import PUBLISHED, ROOT
from tnlib.experiments.networks import network
from tnlib.experiments.tables import read_table
from tnlib.publishing import bootstrap, claims, evidence, judging
from tnlib.publishing import scorecard as module
from tnlib.publishing.evidence import Pair
from tnlib.publishing.judging import judge, settled
from tnlib.publishing.scorecard import AROUND, PAIRS


def test_every_claim_has_a_verdict_on_every_pair(card):
    assert [(v.model, v.dataset, v.claim) for v in card.verdicts] == [
        (*pair, claim) for pair in PAIRS for claim in ("1a", "1b", "2", "3", "4", "5")]
    assert {v.verdict for v in card.verdicts} <= set(claims.VERDICTS) and all(v.reason for v in card.verdicts)
    least = card.claims["verdicts"]["least_accuracy"]
    reduced = {(pair.model, pair.dataset) for pair in card.pairs
               if min(pair.accuracies.values(), default=1) < least[pair.model][pair.dataset]}
    for v in card.verdicts:
        assert (v.verdict == "not tested") == (bool(v.missing) or not v.parts or (v.model, v.dataset) in reduced)
        for name in v.tables:
            assert (PUBLISHED / ("weights" if name.endswith(".safetensors") else "results") / name).is_file()


def test_claim_1a_is_what_the_published_rows_say(card):
    """The leading number again, row by row from the tables."""
    for verdict in card.of("1a")[:2]:
        shares = []
        for path in sorted((PUBLISHED / "results").glob(f"truncation-vanilla-{verdict.dataset}-s*.csv")):
            stars = []
            cells = read_table(path).query("split == 'test'").sort_values("rank", ascending=False)
            cells = cells.assign(upper=score_interval(cells["lost"], cells["gained"], cells["images"], 0.9)[1])
            for _, curve in cells.groupby(["layer", "cut"]):
                star = 0.0
                for row in curve.itertuples():
                    if row.upper > 1:
                        break
                    star = max(star, 1 - row.norm_kept)
                stars.append(star)
            shares.append(np.mean(np.array(stars) >= 0.10))
        assert verdict.parts[0].values == pytest.approx(tuple(shares))


def test_what_the_page_says_in_words_holds_for_the_published_numbers(card):
    """Words that no number replaces: the tests of claim 2 part ways, and shrinking is the more harmless loss."""
    numbers = card.numbers()
    value = lambda claim, dataset, number: numbers[(numbers["claim"] == claim) & (numbers["dataset"] == dataset)
                                                   & numbers["number"].str.contains(number, regex=False)]["value"].iloc[0]
    for dataset in ("cifar10", "cifar100"):
        assert value("2", dataset, "(i)") < 1.25 and value("2", dataset, "(ii)") > 0.10
        assert value("2", dataset, "(iii)") < 0.7 * value("2", dataset, "(ii)"), "much of the deficit goes without weight decay"
        assert value("1a", dataset, "shrink") > 0.5 > value("1a", dataset, "cells with λ*")


def test_what_the_page_says_of_other_ways_to_choose_ranks_holds(card):
    found = card.numbers("5").query("model == 'vanilla'")
    gains = lambda words: {(row.dataset, float(row.number.rsplit(" at ", 1)[1].split()[0])): row for row in found[found["number"].str.contains(words)].itertuples()}
    narrower, norm, inner, output = map(gains, ("narrower", "one norm", "first layer whole", "data-aware"))
    assert len(norm) == len(inner) == len(output) == 6
    assert all(row.value > 0 for key, row in narrower.items() if key[0] == "cifar100") and all(row.value > 0 for row in norm.values())
    assert [key for key, row in inner.items() if row.value > 0.5] == [("cifar100", 0.125)]
    assert all(row.low < 0 for row in output.values()) and [key for key, row in output.items() if row.value < -1] == [("cifar10", 0.125)]


def test_claim_3_says_where_the_untruncated_networks_do_no_better(card):
    """Their share of the continued runs, row by row from the tables."""
    found = {}
    for verdict in card.of("3"):
        within = []
        for path in sorted((PUBLISHED / "results").glob(f"retraining-{verdict.model}-{verdict.dataset}-s*.csv")):
            (row,) = read_table(path).query("arm == 'continued' and epoch == 3").itertuples()
            within.append(score_interval(row.lost, row.gained, row.images, 0.9)[1] <= 1)
        refuted = verdict.verdict == "not reproduced"
        assert (verdict.but == "nor does the untruncated network") == (refuted and np.mean(within) < 0.5)
        assert f"of the untruncated networks, continued, after 3 epochs: {100 * np.mean(within):.0f} %" in verdict.reason or not refuted
        found[verdict.model, verdict.dataset] = verdict.but
        assert bool(verdict.but) == ("nor does the untruncated network" in module.label(verdict))
    assert found["vanilla", "cifar100"] and not found["vanilla", "cifar10"]
    assert not any(verdict.but for verdict in card.verdicts if verdict.claim != "3")


def test_an_interval_of_networks_that_are_all_alike_is_marked(card):
    marked = []
    for claim in card.claims["claims"]:
        parts = [part for verdict in card.of(claim) for part in (*verdict.parts, *verdict.beside) or (None,)]
        for part, shown in zip(parts, card.shown(claim).itertuples(), strict=True):
            alike = part is not None and part.kind == "share" and len(part.values) > 1 and len(set(part.values)) == 1
            assert shown[4].endswith(" †") == alike, shown
            assert part is None or part.threshold is None or alike == ("all networks alike" in part.words)
            marked.append(alike)
    assert any(marked) and not all(marked)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_what_a_deep_network_lacks_for_claim_2_is_a_command_that_is_understood(card, dataset):
    (verdict,) = (verdict for verdict in card.verdicts if (verdict.claim, verdict.model, verdict.dataset) == ("2", "resnet50", dataset))
    (command,) = (line for line in re.findall("`([^`]+)`", " ".join(verdict.missing)) if line.startswith("tnlib train"))
    name, where, *_ = command.removeprefix("tnlib train ").split()
    assert network(name).recipe.weight_decay == 0 and where == dataset


def test_a_verdict_on_all_own_networks_is_not_interim_where_a_control_has_fewer(card):
    found = {verdict.claim: verdict for verdict in card.verdicts if (verdict.model, verdict.dataset) == ("vanilla", "cifar10")}
    assert min(found["2"].networks) < 5 == max(found["2"].networks) and not any(verdict.interim for verdict in found.values())


def test_what_the_front_page_says_of_the_claims_in_words_holds_for_the_published_numbers(card):
    numbers = card.numbers()

    def value(claim, model, dataset, number):
        found = numbers[(numbers[["claim", "model", "dataset"]] == [claim, model, dataset]).all(axis="columns")].set_index("number")["value"]
        return found[[name for name in found.index if name.startswith(number)][0]]

    for dataset in ("cifar10", "cifar100"):
        assert value("1a", "vanilla", dataset, "cells with λ* of at least 0.1") < 0.15
        assert value("1a", "resnet50", dataset, "cells with λ* of at least 0.1") > 0.5
    assert value("1a", "resnet50", "cifar10", "cells with matched noise as large") > 0.5
    assert value("3", "vanilla", "cifar100", "continued, after 3 epochs") == 0
    assert value("3", "vanilla", "cifar100", "free, after 5 epochs") > 0.5
    assert value("3", "vanilla", "cifar100", "noise, after 5 epochs") > value("3", "vanilla", "cifar100", "free, after 5 epochs") + 0.1
    assert value("3", "vanilla", "cifar10", "continued, after 3 epochs") == 3 / 5 and value("3", "vanilla", "cifar10", "cases within") == 0
    assert value("3", "vanilla", "cifar10", "free, after 5 epochs") == 1 / 25 and abs(value("3", "vanilla", "cifar10", "noise, after 5 epochs") - 0.5) < 0.05
    for dataset, low, high in (("cifar10", 0, 0.95), ("cifar100", 0.95, 1.05)):  # ε* over that of noise, without the first layer
        (pair,) = (pair for pair in card.pairs if (pair.model, pair.dataset) == ("vanilla", dataset))
        behind = pair.ratios()[0].query("layer != 'conv1'")
        assert low < np.exp(np.log(behind["ratio"]).groupby(behind["seed"]).mean().mean()) < high
        assert value("2", "vanilla", dataset, "median entropy deficit in a random gauge") > 2 * value("2", "vanilla", dataset, "(ii)")
    assert min(value("1b", "vanilla", "cifar10", f"its sign in {width} width") for width in ("constant", "reversed")) > 0.02
    assert max(abs(value("1b", "vanilla", "cifar100", f"its sign in {width} width")) for width in ("constant", "reversed")) < 0.005
    front = (ROOT / "book" / "index.md").read_text()
    ratios = [value("2", "vanilla", dataset, "(i)") for dataset in ("cifar10", "cifar100")]
    assert "may be {:.1f} times\n  that of noise on CIFAR-10 and {:.1f} times on CIFAR-100, where 1.25 was".format(*ratios) in front
    for dataset in ("cifar10", "cifar100"):
        assert 0.4 < value("2", "vanilla", dataset, "(iii)") / value("2", "vanilla", dataset, "(ii)") < 0.6, "about half"
    eighth = value("5", "vanilla", "cifar100", "ranks by map − one rank fraction, the first layer whole, at 0.125")
    others = [value("5", "vanilla", "cifar100", f"ranks by map − one rank fraction, the first layer whole, at {budget}") for budget in (0.5, 0.25)]
    assert eighth > 1 > 0.2 > max(others) and all(value("5", "vanilla", "cifar100", f"ranks by map − a narrower network, at {budget}") > 0.5 for budget in (0.5, 0.25, 0.125))
    for claim, at_least in (("1a", 0.1), ("3", 3)):
        assert claims.read_claims()["claims"][claim]["thresholds"][{"1a": "lambda_star", "3": "epochs"}[claim]] == at_least
    refuted = [verdict.parts[0] for verdict in card.verdicts if verdict.verdict == "not reproduced"]
    assert refuted and all(part.bound == part.threshold / 2 for part in refuted), "each ✗ rests on the bound"


def test_what_is_missing_is_named_with_the_command_that_measures_it(card, monkeypatch, tmp_path):
    monkeypatch.setattr(evidence, "published_networks", lambda: [])
    verdict = judge(card.claims["claims"]["1a"], Pair("resnet50", "cifar10"))
    assert verdict.verdict == "not tested" and verdict.reason == "ResNet-50 has no published weights"
    with pytest.raises(FileNotFoundError, match="`tnlib train vanilla-constant cifar100 --seed 0 --publish`"):
        Pair("vanilla", "cifar100").points("truncation", "vanilla-constant")
    monkeypatch.undo()
    monkeypatch.setattr(evidence, "PUBLISHED", tmp_path)
    with pytest.raises(FileNotFoundError, match="`tnlib measure truncation vanilla cifar10 --seed 0 --publish`"):
        Pair("vanilla", "cifar10").table("truncation")
    found = judge(card.claims["claims"]["1a"], Pair("vanilla", "cifar10"))
    assert found.verdict == "not tested" and found.missing and not found.parts


@pytest.fixture
def copied(monkeypatch, tmp_path):
    """A copy of what claim 1a takes of one data set, to be damaged."""
    (tmp_path / "results").mkdir()
    for path in (PUBLISHED / "results").glob("truncation-vanilla-cifar10-s*"):
        shutil.copy(path, tmp_path / "results")
    (tmp_path / "weights").symlink_to(PUBLISHED / "weights")
    monkeypatch.setattr(evidence, "PUBLISHED", tmp_path)
    return tmp_path / "results" / "truncation-vanilla-cifar10-s0.csv"


def test_only_what_is_published_counts(copied, monkeypatch, tmp_path):
    """Seed 0 is in runs/ alone, wherever a fall-back could look."""
    for folder in (tmp_path / "runs" / "results", tmp_path.parent / "runs" / "results"):
        folder.mkdir(parents=True, exist_ok=True)
        for path in copied.parent.glob(f"{copied.stem}*"):
            shutil.copy(path, folder)
    for path in list(copied.parent.glob(f"{copied.stem}*")):
        path.unlink()
    monkeypatch.setattr(catalogue, "FOLDERS", (copied.parent, tmp_path / "runs" / "results"))
    monkeypatch.setattr(files, "RUNS", tmp_path / "runs")
    found, _ = Pair("vanilla", "cifar10").table("truncation")
    assert sorted(found["seed"].unique()) == [1, 2, 3, 4]


def test_an_altered_table_is_refused_in_one_message(copied, monkeypatch):
    Pair("vanilla", "cifar10").points()
    copied.write_text(copied.read_text().replace(",9", ",8", 1))
    with pytest.raises(ValueError, match="truncation-vanilla-cifar10-s0.csv is corrupt or was altered"):
        Pair("vanilla", "cifar10").points()
    done = CliRunner().invoke(main, ["claims"])
    assert done.exit_code == 1 and "was altered" in done.output and "Traceback" not in done.output


def test_a_table_of_other_weights_is_refused(copied):
    card = copied.with_suffix(".json")
    card.write_text(card.read_text().replace('"weights": "', '"weights": "0'))
    with pytest.raises(ValueError, match="measured on other weights"):
        Pair("vanilla", "cifar10").points()


def test_the_place_of_a_layer_in_the_network_goes_with_its_points():
    pair = Pair("vanilla", "cifar10")
    points, names = pair.points_of_all_layers()
    assert names == pair.table("truncation")[1] and len(points) == len(pair.points()[0])
    assert dict(zip(points.layer, points.depth)) == {"conv1": 1, "conv2": 2, "conv3": 3, "conv4": 4}
    assert set(points["size"]) == {"3×3"} and (points.stage == points.layer).all() and (points.position == points.layer).all()


def test_statements_on_cells_are_about_3x3_layers(monkeypatch):
    """As if the first and the last layer were 1×1 ones, and there were a 1×1 layer of which nothing is measured."""
    shapes = {"conv1": (32, 27, 1, 1), "conv2": (64, 32, 3, 3), "conv3": (128, 64, 3, 3), "conv4": (256, 1152, 1, 1)}
    monkeypatch.setattr(evidence, "_shapes", lambda model, dataset, spatial=False: {
        layer: shape for layer, shape in shapes.items() if not spatial or shape[2:] == (3, 3)})
    pair = Pair("vanilla", "cifar10")
    for found, _ in (pair.cells("truncation"), pair.points(), pair.shrunk(), pair.deficits()):
        assert set(found.layer) == {"conv2", "conv3"}
    assert set(pair.points_of_all_layers()[0].layer) == set(shapes)
    shapes["layer9"] = (8, 8, 1, 1)
    with pytest.raises(FileNotFoundError, match=r"7 of \d+ cells are not there, \('layer9', 'OUT', 1\) for one"):
        Pair("vanilla", "cifar10").points_of_all_layers()
    Pair("vanilla", "cifar10").points()


def test_a_test_whose_cells_were_not_all_measured_is_not_tested(card, monkeypatch):
    monkeypatch.setattr(evidence, "read_table", lambda path: read_table(path).query(
        "not (layer == 'conv3' and cut == 'OUT' and rank == 1)"))
    pair = Pair("vanilla", "cifar10")
    found = judge(card.claims["claims"]["1a"], pair)
    assert found.verdict == "not tested" and "1 of 240 cells are not there, ('conv3', 'OUT', 1)" in found.reason
    assert "numbers reduced" in module.label(found) and found.tables[0].startswith("truncation-vanilla")
    assert found.parts[0].interval.n == 5 and 0 < found.parts[0].interval.estimate < 1, "of the cells that are there"
    assert bootstrap.checked(found, pair, card.claims) == found, "no bootstrap of a part"
    second = judge(card.claims["claims"]["2"], pair)
    assert second.verdict == "not tested" and [part.name[:3] for part in second.parts] == ["(i)", "(ii", "(ii"]
    assert len(second.missing) == 1 and second.missing[0].count("cells are not there") == 2, "of truncations and of noise"


def test_a_network_that_is_not_accurate_enough_leaves_numbers_and_no_verdict(card):
    pair = card.pairs[0]
    own = {v.claim: v for v in card.verdicts if (v.model, v.dataset) == PAIRS[0]}
    asking = card.claims | {"verdicts": card.claims["verdicts"] | {"least_accuracy": {"vanilla": {"cifar10": 0.99}}}}
    found = settled(asking, pair, own)
    assert {v.verdict for v in found.values()} == {"not tested"} and "below the 99 %" in found["1a"].reason
    assert found["1a"].parts == own["1a"].parts and "reduced" in module.label(found["1a"])
    between = (min(pair.accuracies.values()) + max(pair.accuracies.values())) / 2
    asking["verdicts"]["least_accuracy"] = {"vanilla": {"cifar10": between}}
    assert {v.verdict for v in settled(asking, pair, own).values()} == {"not tested"}, "one network of five is enough"


def test_tables_of_an_older_version_of_an_experiment_do_not_count(monkeypatch):
    with_version = evidence.experiment_called
    monkeypatch.setattr(evidence, "experiment_called", lambda name: dataclasses.replace(with_version(name), version=99))
    with pytest.raises(FileNotFoundError, match="no published results"):
        Pair("vanilla", "cifar10").table("truncation")


def test_what_ten_percent_is_read_as_is_judged_for_each_reading(card):
    for pair in card.pairs[:2]:
        (verdict,) = (v for v in card.of("1a") if (v.model, v.dataset) == (pair.model, pair.dataset))
        own = {id: judge(claim, pair) for id, claim in card.claims["claims"].items()}
        for reading, found in verdict.readings.items():
            alone = judge(card.claims["claims"]["1a"], pair, reading=reading)
            assert found == settled(card.claims, pair, own | {"1a": alone})["1a"].verdict, reading
        assert set(verdict.readings) == {"lambda", "w", "epsilon"} and len(set(verdict.readings.values())) > 1


def test_of_the_vanilla_network_the_seeds_count_that_were_agreed_on(monkeypatch):
    """A sixth network, good or bad, changes nothing: it would be one more chance for another verdict."""
    cards = evidence.published_networks()
    (first,) = [card for card in cards if (card["model"], card["dataset"], card["seed"]) == ("vanilla", "cifar10", 0)]
    monkeypatch.setattr(evidence, "published_networks", lambda: [*cards, first | {"seed": 5, "test_accuracy": 0.5}])
    assert list(Pair("vanilla", "cifar10").accuracies) == [0, 1, 2, 3, 4]


def test_spectra_of_networks_that_do_not_count_are_left_out(monkeypatch):
    monkeypatch.setattr(evidence, "_accuracies", lambda model, dataset: {0: 0.8, 3: 0.8})
    found, files = Pair("vanilla", "cifar10").deficits()
    assert set(found["seed"]) == {0, 3} and files == ["vanilla-cifar10-s0.safetensors", "vanilla-cifar10-s3.safetensors"]


def test_sensitivity_moves_one_threshold_and_agrees_at_the_fixed_one(card):
    for claim, thresholds in AROUND.items():
        for name, values in thresholds.items():
            assert card.claims["claims"][claim]["thresholds"][name] in values, f"{claim}: {name}"
    table = card.sensitivity()
    verdicts = {(v.claim, v.model, v.dataset): v.verdict for v in card.verdicts}
    assert len(table) and "not tested" not in set(table["verdict"])
    for row in table[table["fixed"]].itertuples():
        assert row.verdict == verdicts[row.claim, row.model, row.dataset]
    loose = table[(table["model"] == "vanilla") & (table["claim"] == "1a") & (table["threshold"] == "lambda_star")].set_index(["dataset", "value"])["verdict"]
    assert loose["cifar10", 0.2] == "not reproduced" and loose["cifar10", 0.02] != "not reproduced"
    moved = table.assign(fixed_verdict=[verdicts[key] for key in zip(table["claim"], table["model"], table["dataset"])]).query("verdict != fixed_verdict")
    turned = moved.query("fixed_verdict == 'not reproduced' and verdict == 'reproduced'")
    assert set(zip(turned["claim"], turned["threshold"], turned["value"], turned["dataset"])) == {
        ("1a", "lambda_star", 0.02, "cifar10"), ("3", "epochs", 5, "cifar100")}, "as the chapter says"
    assert set(moved["claim"]).isdisjoint({"2", "5"})


@pytest.fixture
def nothing_drawn_anew(monkeypatch):
    monkeypatch.setattr(bootstrap, "crossed_bootstrap", lambda networks, images, replicates: (
        np.arange(networks)[None], np.ones((1, images), dtype=int)))


def test_the_bootstrap_finds_the_stars_of_the_table_when_nothing_is_drawn_anew(nothing_drawn_anew):
    """The rows that it leaves out, far down a curve, never count."""
    pair = Pair("vanilla", "cifar10")
    stars, layers = bootstrap.stars_drawn(pair)
    points, _ = pair.points()
    assert list(layers) == points[points["seed"] == 0].sort_values(["layer", "cut"])["layer"].tolist()
    for seed, rows in points.groupby("seed"):
        assert stars[0, seed] == pytest.approx(rows.sort_values(["layer", "cut"])["lambda_star"].to_numpy())


@pytest.fixture
def checked(card):
    """Claim → its numbers on the vanilla network, CIFAR-10, with the check; the tables are read once for all tests, and drawn anew."""
    pair = Pair("vanilla", "cifar10")
    pair._found |= {key: found for key, found in card.pairs[0]._found.items() if key[0] != "points_drawn"}
    return lambda id: bootstrap.checked(next(v for v in card.verdicts if v.claim == id), pair, card.claims).parts


def test_the_bootstrap_finds_the_numbers_of_the_claims_when_nothing_is_drawn_anew(nothing_drawn_anew, checked):
    for id, count in {"1a": 2, "1b": 1, "2": 1, "3": 1, "5": 6}.items():
        parts = [part for part in checked(id) if part.check]
        assert len(parts) == count
        for part in parts:
            assert part.check.low == pytest.approx(part.interval.estimate) == part.check.high, (id, part.name)


def test_the_bootstrap_draws_networks_with_replacement_and_leaves_replicates_together():
    networks, replicates = 5, 200
    values = np.arange(networks)[:, None, None] + 10 * np.arange(replicates) + np.zeros((networks, 3, replicates))
    drawn = bootstrap._networks_drawn(values)
    assert drawn.shape == (replicates, networks, 3) and (drawn // 10 == np.arange(replicates)[:, None, None]).all()
    assert (drawn % 10 == drawn[..., :1] % 10).all(), "a network keeps its values together"
    distinct = np.array([len(set(of)) for of in drawn[..., 0] % 10])
    assert distinct.mean() == pytest.approx(networks * (1 - (1 - 1 / networks) ** networks), abs=0.2), "with replacement"


def test_the_bootstrap_stands_beside_the_interval(monkeypatch, checked):
    monkeypatch.setattr(bootstrap, "REPLICATES", 20)
    found = {id: checked(id) for id in ("1a", "1b", "2", "3", "4", "5")}
    checks = {id: [part.check is not None for part in parts] for id, parts in found.items()}
    for part in (part for parts in found.values() for part in parts if part.check):
        assert part.check.low <= part.check.high and part.check.n == 20
    assert checks["1a"] == [True, True] and checks["3"] == [True]
    assert checks["1b"][0] and not any(checks["1b"][1:]), "the sign in other widths has none"
    assert checks["2"][0] and not any(checks["2"][1:]), "nor have the spectra, which no image has a part in"
    assert not any(checks["4"]), "nor losses"
    assert checks["5"] == [True] * 6


def test_the_command_prints_every_verdict_and_why(card, monkeypatch):
    monkeypatch.setattr(module, "scorecard", lambda: card)
    done = CliRunner().invoke(main, ["claims"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    for verdict in card.verdicts:
        assert f"{module.pair_text(verdict.model, verdict.dataset)}: {verdict.words}. {verdict.reason}" in done.output
        row = next(line for line in done.output.splitlines() if line.split()[:1] == [verdict.claim]
                   and module.pair_text(verdict.model, verdict.dataset) + " " in line)
        decides = [part for part in verdict.parts if part.threshold is not None] or verdict.parts
        assert module.label(verdict) in row and (not decides or decides[0].span in row)


def test_help_is_one_line_and_an_argument_is_one_message():
    done = CliRunner().invoke(main, ["claims", "--help"])
    assert done.exit_code == 0 and "Print the scorecard" in done.output and "Error" not in done.output
    done = CliRunner().invoke(main, ["claims", "1a"])
    assert done.exit_code == 2 and "unexpected extra argument" in done.output


def test_tables_for_the_page_show_what_the_verdicts_hold(card):
    summary = card.summary()
    assert summary["claim"].tolist() == list(card.claims["claims"])
    for verdict in card.verdicts:
        cell = summary.set_index("claim").loc[verdict.claim, module.pair_text(verdict.model, verdict.dataset)]
        name, _, networks = cell.partition(" (n\u00a0=\u00a0")
        assert name == module.label(verdict)
        judged = {part.interval.n for part in verdict.parts} if verdict.verdict != "not tested" else set()
        assert set(networks.rstrip(")").split(" or ")) - {""} == {str(n) for n in judged}
    for claim in card.claims["claims"]:
        numbers, shown = card.numbers(claim), card.shown(claim)
        assert len(numbers) == len(shown) and set(numbers["claim"]) == {claim}
    links = " ".join(card.reasons()["rows"])
    assert "{download}`s0 </results/truncation-vanilla-cifar10-s0.csv>`" in links
    assert pd.notna(card.numbers("1a")["threshold"]).any()


def test_re_training_and_paths_are_judged_as_soon_as_they_are_published(card, monkeypatch):
    tables = {"retraining": (retraining_of(5), ["retraining.csv"]), "paths": (paths_of(1.0), ["paths.csv"])}
    monkeypatch.setattr(Pair, "table", lambda self, experiment: tables[experiment])
    pair, asked = Pair("vanilla", "cifar10"), card.claims["claims"]
    for id, count, files in (("3", 1, ("retraining.csv",)), ("4", 4, ("retraining.csv", "paths.csv"))):
        verdict = judge(asked[id], pair)
        assert verdict.verdict == "reproduced" and len(verdict.parts) == count and verdict.tables == files
        beside = judging._beside(asked[id], pair, judging._Finder())
        assert beside and all(part.threshold is None or part.name.startswith("truncated −") for part in beside)
    names = [part.name for part in judging._beside(asked["3"], pair, judging._Finder())]
    assert names == ["truncated − matched noise after the same epochs", "free, after 1 epoch", "noise, after 1 epoch", "free, after 5 epochs",
                     "noise, after 5 epochs", "kept, after 3 epochs", "noise, after 3 epochs", "continued, after 3 epochs", "scratch, after 3 epochs"]
    runs = retraining_of(5)
    tables["retraining"] = (runs[runs["arm"] != "scratch"], ["retraining.csv"])
    without = Pair("vanilla", "cifar10")
    assert judge(asked["4"], without).verdict == "reproduced", "a fresh network stands beside, and decides nothing"
    assert "the same from scratch" not in [part.name for part in judging._beside(asked["4"], without, judging._Finder())]
    tables["retraining"] = (retraining_of(5, epochs=2), ["retraining.csv"])
    short = judge(asked["3"], Pair("vanilla", "cifar10"))
    assert short.verdict == "not tested" and "after 3 epochs" in short.reason and "tnlib measure retraining" in short.reason


def test_compressed_networks_are_judged_where_all_that_is_asked_for_is_there(card, monkeypatch):
    rows = compression_of((0.2, 1.5, 3.0), (1.0, 1.0, 1.0))
    monkeypatch.setattr(Pair, "table", lambda self, experiment: (rows, ["compression.csv"]))
    asked = card.claims["claims"]["5"]
    verdict = judge(asked, Pair("vanilla", "cifar10"))
    assert verdict.verdict == "reproduced" and verdict.tables == ("compression.csv",) and len(verdict.parts) == 6
    assert verdict.interim and module.label(verdict) == "✓\u00a0reproduced (interim)", "three of five"
    spectra = Pair("vanilla", "cifar10")
    three = claims.Part("(i) ratio", (1.3, 1.4, 1.35), "ratio", 1.25, 1.0, 9)
    five = claims.Part("(ii) deficit", (0.2, 0.21, 0.2, 0.22, 0.2), "deficit", 0.1, 0.0, 9)
    monkeypatch.setattr(judging, "_parts", lambda *given: (three, five))
    assert judge(card.claims["claims"]["2"], spectra).interim, "the part with the fewest networks counts"
    monkeypatch.undo()
    monkeypatch.setattr(Pair, "table", lambda self, experiment: (rows, ["compression.csv"]))
    beside = judging._beside(asked, Pair("vanilla", "cifar10"), judging._Finder())
    assert [part.values[0] for part in beside] == pytest.approx([2.0] * 3 + [0.0] * 3) and all(part.threshold is None for part in beside)
    rows = rows[~((rows["arm"] == "narrower") & (rows["budget"] == 0.25) & (rows["seed"] == 1))]
    short = judge(asked, Pair("vanilla", "cifar10"))
    assert [part.interval.n for part in short.parts] == [2] * 6 and not short.interim, "those of whole networks are shown"
    assert short.verdict == "not tested" and "seed 1: 1 of 9 networks are not there, narrower at 0.25" in short.reason
    assert "`tnlib measure compression vanilla cifar10 --seed 1 --publish`" in short.reason
    rows = rows[(rows["seed"] == 1) & (rows["epoch"] < 3)]
    assert judge(asked, Pair("vanilla", "cifar10")).parts == ()
    rows = pd.concat([compression_of((0.2, 1.5, 3.0), (1.0, 1.0, 1.0)), rows.assign(seed=3)])
    assert "seed 3: 9 of 9 networks are not there" in judge(asked, Pair("vanilla", "cifar10")).reason, "it was stopped after fewer epochs"
    deep = judge(asked, Pair("resnet50", "cifar10"))
    assert deep.verdict == "not tested" and "not evaluated on held-out images" in deep.reason and "tnlib measure" not in deep.reason
    rows = compression_of((0.2, 1.5, 3.0), (1.0, 1.0, 1.0), arms=("map", "fraction", "narrower"))
    assert judging._beside(asked, Pair("vanilla", "cifar10"), judging._Finder()) == (), "controls may not be measured yet"


def test_corrected_p_is_of_what_decides_alone(card):
    numbers = card.numbers()
    assert set(numbers.loc[numbers["adjusted_p"].notna(), "role"]) == {"decides"}
