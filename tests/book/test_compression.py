"""The chapter on compression: what it draws and says, again from the tables."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import ndtri

import tnlib
from tnlib.experiments.catalogue import find_table
from tnlib.experiments.compression import ARMS
from tnlib.experiments.files import PUBLISHED
from tnlib.experiments.tables import read_answers, read_table
from tnlib.publishing.building import glued_values

COMPRESSING = ("map", "fraction", "norm", "data-aware", "map-one-cut", "fraction-inner", "fraction-inner-one-cut")


@pytest.fixture(scope="module")
def table(shapes_jobs):
    shapes_jobs["compression"]
    return read_answers(find_table("compression", "vanilla", "shapes", 0))


@pytest.fixture(scope="module")
def figures(shapes_jobs):
    return shapes_jobs["compression"].folder / "figures"


@pytest.fixture(scope="module")
def kernels():
    return tnlib.conv_kernels(tnlib.load_model("vanilla", "shapes"))


def test_what_is_drawn_and_said_is_what_the_table_has(table, figures, shapes_jobs):
    drawn = pd.read_csv(figures / "compression-accuracy.csv").set_index(["arm", "budget", "epoch"])["accuracy"]
    assert len(drawn) == len(table) == 2 * len(COMPRESSING) + 1
    for row in table.itertuples():
        assert drawn[row.arm, row.budget, row.epoch] == pytest.approx(row.accuracy)
    last = table[table["epoch"] == 1].set_index("arm")
    gains = pd.read_csv(figures / "compression-table.csv").set_index("against")
    values = glued_values(shapes_jobs["compression"].executed)
    for other in gains.index:
        ahead = 100 * (last["accuracy"]["map"] - last["accuracy"][other])
        assert gains["after"][other] == pytest.approx(ahead)
        text = f"{ahead:+.1f}".replace("-", "−")
        assert values[f"gain-{other}"].strip("'") == ("0.0" if text in ("+0.0", "−0.0") else text)
        alone = (last["answers"]["map"] & ~last["answers"][other]).sum(), (last["answers"][other] & ~last["answers"]["map"]).sum()
        assert gains["surely"][other] == np.sign(alone[0] - alone[1]) * (abs(alone[0] - alone[1]) > ndtri(0.975) * np.sqrt(sum(alone)))


def test_steps_are_differences_of_two_ways(table, figures):
    steps = pd.read_csv(figures / "compression-steps.csv")
    assert len(steps) == 4 and set(steps["from"]) | set(steps["to"]) == {"fraction", "fraction-inner", "fraction-inner-one-cut", "map-one-cut", "map"}
    last = table[table["epoch"] == 1].set_index("arm")["accuracy"]
    for row in steps.to_dict("records"):
        assert row["points"] == row["mean"] == pytest.approx(100 * (last[row["to"]] - last[row["from"]]))


def test_at_equal_prices_the_other_way_is_interpolated(table, figures):
    """Between its one budget and the whole network, by hand over the logarithm of the price; at the budget itself as measured."""
    found = pd.read_csv(figures / "compression-prices.csv").set_index(["against", "equal"])
    costs = pd.read_csv(figures / "compression-costs.csv").set_index("arm")
    for other, price in (("fraction", "parameters"), ("fraction", "multiplications"), ("narrower", "parameters"), ("narrower", "multiplications"), ("narrower", "network_parameters")):
        line, maps = costs.loc[other], costs.loc["map"]
        share = 1 if price == "parameters" else np.log(maps[price]) / np.log(line[price])  # of the way from the whole network, whose price is 1
        if share > 1:
            assert (other, price) not in found.index, "the other does not reach as far"
            continue
        at = costs["accuracy"]["whole"] + share * (line["accuracy"] - costs["accuracy"]["whole"])
        assert found.loc[(other, price), "mean"] == pytest.approx(maps["accuracy"] - at)
    assert len(found) >= 3


def test_the_choices_are_those_of_the_table_and_lie_on_the_held_out_maps(table, figures, kernels):
    picks = pd.read_csv(figures / "compression-ranks.csv").set_index(["arm", "layer"])
    maps = read_table(find_table("truncation", "vanilla", "shapes", 0)).query("split == 'validation'").set_index(["layer", "cut", "rank"])
    begun = table[(table["epoch"] == 0)].set_index("arm")
    whole = sum(kernel.numel() for kernel in kernels.values())
    for arm in COMPRESSING:
        kept = 0
        for layer, cut, rank in zip(kernels, begun["cuts"][arm].split(), begun["ranks"][arm].split()):
            pick = picks.loc[arm, layer]
            assert pick["cut"] == cut and (cut == "-") == (pick["share"] == 1)
            kept += pick["share"] * kernels[layer].numel()
            if cut != "-":
                assert pick["rank"] == int(rank)
                if (layer, cut, int(rank)) in maps.index:
                    assert pick["drop"] == pytest.approx(maps.loc[layer, cut, int(rank)]["accuracy_drop"])
        assert kept == pytest.approx(begun["parameters"][arm]) and kept <= 0.25 * whole
    assert (picks.loc["map"]["drop"] <= begun["level"]["map"] + 1e-9).all()


def test_multiplications_are_counted_factor_by_factor(table, figures, kernels):
    """By hand, of the network with one fraction: at IN an image goes through r channels, from IN to r and from r to OUT."""
    costs = pd.read_csv(figures / "compression-costs.csv").set_index("arm")
    assert len(costs) == len(ARMS) + 1 and (costs.loc["whole"].drop("accuracy") == 1).all()
    sides = dict(zip(kernels, (32, 16, 8, 4)))
    dense = sum(kernel.numel() * sides[layer] ** 2 for layer, kernel in kernels.items())
    row = table[(table["arm"] == "fraction")].iloc[0]
    assert set(row["cuts"].split()) == {"IN"}
    found = sum(int(rank) * (kernel.shape[1] + 9 * kernel.shape[0]) * sides[layer] ** 2 for (layer, kernel), rank in zip(kernels.items(), row["ranks"].split()))
    assert costs["multiplications"]["fraction"] == pytest.approx(found / dense)
    narrow = [3, *map(int, table[table["arm"] == "narrower"]["channels"].iloc[0].split())]
    found = sum(9 * a * b * side ** 2 for a, b, side in zip(narrow, narrow[1:], sides.values()))
    assert costs["multiplications"]["narrower"] == pytest.approx(found / dense)


@pytest.fixture(scope="module")
def published():
    """Accuracy in per cent by (epoch, budget, seed), a column an arm, of the published networks on CIFAR-10."""
    runs = pd.concat([read_table(path) for path in (PUBLISHED / "results").glob("compression-vanilla-cifar10-s*.csv")])
    assert set(runs["seed"]) == set(range(5)) and runs.groupby("seed")["arm"].nunique().eq(len(ARMS)).all()
    return 100 * runs.pivot(index=["epoch", "budget", "seed"], columns="arm", values="accuracy")


def test_what_chapter_and_front_page_say_in_words_holds_for_the_published_tables(published):
    """Ahead of one fraction everywhere, but not where the first layer is left whole, nor of the data-aware error; above a narrower network but at the
    least budget, where they are level; training levels."""
    mean = published.groupby(level=["epoch", "budget"]).mean()
    last, first = mean.loc[5], mean.loc[0]
    ahead = last["map"] - last["fraction"]
    assert 0.75 < ahead[0.5] < 1.25 and ahead[[0.25, 0.125]].between(3.5, 4.5).all() and (published.loc[5]["map"] > published.loc[5]["fraction"]).all()
    within = last["map-one-cut"] - last["fraction"]
    assert within[0.5] > 0.7 * ahead[0.5] and within[0.125] < 0.4 * ahead[0.125], "how much is had without another cut"
    first_alone, cut_alone = last["fraction-inner-one-cut"] - last["fraction"], last["fraction-inner"] - last["fraction-inner-one-cut"]
    assert first_alone[0.5] > 3 * cut_alone[0.5] > 0 and cut_alone[0.125] > 3 * first_alone[0.125] > 0, "the first layer at a half, the cut at an eighth"
    assert (last["map-one-cut"] - last["fraction-inner-one-cut"]).between(0, 1).all(), "at one cut maps find the first layer, and little else"
    begun = (first["fraction-inner-one-cut"] - first["fraction"])
    assert begun[0.125] < 0 < begun[[0.5, 0.25]].min(), "before training, at an eighth, the first layer left whole costs at the old cut"
    looking = last[["map", "data-aware"]].sub(last["fraction-inner"], axis="index")
    assert (looking < 1).all(axis=None) and looking["map"][0.125] < 0, "what the ways that look gain on a rule that spares the first layer"
    inner, first_layer = last["map"] - last["fraction-inner"], last["fraction-inner"] - last["fraction"]
    assert (inner.abs() < 0.5).all() and (first_layer > 0.7 * ahead).all() and inner[0.125] < 0
    assert (first["map"] - first["fraction-inner"])[[0.25, 0.125]].gt(3).all(), "before training maps are ahead where little is kept"
    over = last["map"] - last["narrower"]
    assert over[[0.5, 0.25]].between(1, 2).all() and abs(over[0.125]) < 0.5
    signs = np.sign(published.loc[5, 0.125]["map"] - published.loc[5, 0.125]["narrower"])
    assert set(signs) == {-1, 1}, "and which is ahead differs from network to network"
    assert (last["data-aware"] > last["map"] - 0.4).all() and last["data-aware"][0.125] > last["map"][0.125] + 1
    apart = lambda of: of[list(COMPRESSING)].max(axis="columns") - of[list(COMPRESSING)].min(axis="columns")
    assert (apart(last) < 0.4 * apart(first)).all()
    rows = pd.concat([read_table(path) for path in (PUBLISHED / "results").glob("compression-vanilla-cifar10-s*.csv")])
    others = {arm: rows.query("arm == @arm and epoch == 0").set_index(["seed", "budget"])[["cuts", "ranks"]].map(lambda listed: listed.split()[1:]) for arm in ("fraction", "fraction-inner-one-cut")}
    assert others["fraction"].equals(others["fraction-inner-one-cut"].reindex(others["fraction"].index)), "with all other ranks as they were"
    first_kept = rows[rows["cuts"].notna() & (rows["epoch"] == 0)].assign(kept=lambda found: [
        1 if cut == "-" else int(rank) * sum(tnlib.Cut.parse(cut).dimensions((32, 3, 3, 3))) / 864
        for cut, rank in zip(found["cuts"].str.split().str[0], found["ranks"].str.split().str[0])]).groupby(["arm", "budget"])["kept"].mean()
    kept = {arm: first_kept[arm] for arm in ("map", "fraction")}
    assert abs(kept["map"][0.5] - kept["fraction"][0.5]) < 0.05 and kept["map"][0.25] > 1.5 * kept["fraction"][0.25], "what is kept of the first layer"
    assert kept["map"].idxmin() == 0.125
    size = rows.groupby(["arm", "budget"])["network_parameters"].max()
    assert size["narrower", 0.25] < size["map", 0.125] and last["narrower"][0.25] > last["map"][0.125] + 1, "more accurate, and smaller in all"
    cuts = pd.Series([cut for cuts in rows.query("arm == 'map' and epoch == 0")["cuts"] for cut in cuts.split()])
    assert cuts.isin(["OUT,KW", "OUT,KH"]).mean() > 0.9
    assert {cut for cuts in rows.query("arm == 'fraction-inner' and epoch == 0")["cuts"] for cut in cuts.split()} == {"-", "OUT,KW", "OUT,KH"}
    begun = read_table(PUBLISHED / "results" / "compression-vanilla-cifar10-s0.csv").query("arm == 'map' and epoch == 0").set_index("budget")["level"]
    assert begun[0.5] < 1 < begun[0.25] and begun[0.125] > 5, "a budget asks for a level of its own"


def test_what_the_chapter_says_in_words_of_a_second_data_set_holds():
    """Where the rule with the first layer whole picks OUT,IN at an eighth, it does badly, and the maps keep their lead; so do errors at the
    outputs."""
    tables = sorted((PUBLISHED / "results").glob("compression-vanilla-cifar100-s*.csv"))
    assert tables
    ended = 100 * pd.concat(map(read_table, tables)).query("epoch == 5").pivot(index=["budget", "seed"], columns="arm", values="accuracy").groupby("budget").mean()
    assert (ended["fraction-inner-one-cut"] - ended["fraction"] > 3 * (ended["fraction-inner"] - ended["fraction-inner-one-cut"])).all(), "the first layer at every budget"
    for path in tables:
        rows = read_table(path).query("budget == 0.125").set_index(["arm", "epoch"])
        (cut,) = set(rows.loc[("fraction-inner", 0), "cuts"].split()) - {"-"}
        last = 100 * rows["accuracy"].xs(5, level="epoch")
        assert rows.loc[("fraction-inner", 0), "accuracy"] < 0.1 and abs(last["map"] - last["data-aware"]) < 1
        assert (last["map"] - last["fraction-inner"] > 5) == (cut == "OUT,IN")
    assert (ended["map"] - ended["fraction"]).round().to_dict() == {0.125: 11, 0.25: 8, 0.5: 2}, "as the first page has it"
    inner = ended["map"] - ended["fraction-inner"]
    assert (inner >= 1).to_dict() == {0.125: True, 0.25: False, 0.5: False}, "a point ahead of that rule at an eighth alone"
    assert (ended["map"] - ended["data-aware"] < 1).all() and (ended["map"] > ended["norm"]).all()


def test_by_other_prices_the_narrower_network_is_ahead_where_the_chapter_says_so():
    """At an eighth, by lines through its own budgets, as the chapter draws them: numbers of parameters of the whole network."""
    for dataset in ("cifar10", "cifar100"):
        rows = pd.concat(map(read_table, (PUBLISHED / "results").glob(f"compression-vanilla-{dataset}-s*.csv"))).query("epoch == 5")
        over = {budget: [] for budget in (0.5, 0.25, 0.125)}
        for (seed, budget), maps in rows.query("arm == 'map'").groupby(["seed", "budget"]):
            line = rows.query("arm == 'narrower' and seed == @seed").sort_values("network_parameters")
            here = np.interp(np.log(maps["network_parameters"].item()), np.log(line["network_parameters"]), line["accuracy"])
            over[budget].append(100 * (maps["accuracy"].item() - here))
        reach = {budget: np.mean(points) + stats.t.ppf(0.975, 4) * stats.sem(points) for budget, points in over.items()}
        assert {len(points) for points in over.values()} == {5} and np.mean(over[0.125]) < -2
        assert min(reach[0.5], reach[0.25]) > 0, "ahead or level at a half and a quarter"
