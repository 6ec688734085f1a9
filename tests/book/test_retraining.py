"""The chapter on re-training: its numbers from the tables of the `shapes` profile, and with more networks."""

import re
from functools import partial

import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml

import tnlib
from tnlib.experiments.catalogue import find_table
from tnlib.experiments.drops import harmless
from tnlib.experiments.files import PUBLISHED, ROOT
from tnlib.experiments.tables import read_answers, read_bits, read_spectra, read_table
from tnlib.publishing import results
from tnlib.publishing.building import glued_values
from tnlib.publishing.jobs import sections

from .test_notebooks import _upper_bound

CASE = "OUT,KW at 0.5"


def shapes(experiment):
    return read_table(find_table(experiment, "vanilla", "shapes", 0))


def made(job, name):
    return pd.read_csv(job.folder / "figures" / f"{name}.csv")


def texts(job):
    return {name: text.strip("'") for name, text in glued_values(job.executed).items()}


def numbers(text):
    return [float(number) for number in re.findall(r"[+-]?\d+(?:\.\d+)?", text.replace("−", "-"))]


def of_run(table, arm, epoch):
    return table[(table.arm == arm) & (table.epoch == epoch)].iloc[0]


def test_the_accuracies_are_those_of_the_answers(shapes_jobs):
    job, table = shapes_jobs["retraining"], shapes("retraining")
    drawn = made(job, "retraining-accuracy").set_index(["arm", "epoch"])["accuracy"]
    assert set(drawn.index.get_level_values("arm")) == {"free", "kept", "noise", "continued", "scratch"}
    points = made(job, "retraining-recovery").set_index(["arm", "epoch"])
    for (arm, epoch), accuracy in drawn.items():
        row = of_run(table, arm, epoch)
        assert accuracy == pytest.approx(row.correct / row.images)
        if (arm, epoch) in points.index:
            assert points.loc[(arm, epoch), "points"] == pytest.approx(100 * (row.gained - row.lost) / row.images)
    said = texts(job)
    for arm in ("free", "kept", "noise"):
        row = of_run(table, arm, 1)
        assert said[f"recovered-{arm}"] == f"{int(_upper_bound(row.lost, row.gained, row.images) <= 1)} of 1 case"
    assert numbers(said["behind-free"]) == [pytest.approx(
        100 * (of_run(table, "continued", 1).accuracy - of_run(table, "free", 1).accuracy), abs=0.051)]


def test_the_deep_network_is_shown_as_the_table_has_it(shapes_jobs):
    """On drawn images there is none, and the page's own network stands in its place."""
    job, table = shapes_jobs["retraining"], shapes("retraining")
    drawn = made(job, "retraining-deep").set_index(["arm", "epoch"])["accuracy"]
    shown = made(job, "retraining-deep-outcomes").set_index(["arm", "epoch"])
    continued = of_run(table, "continued", 1)
    for (arm, epoch), accuracy in drawn.items():
        row = of_run(table, arm, epoch)
        assert accuracy == pytest.approx(row.correct / row.images)
        assert shown.loc[(arm, epoch), "points"] == pytest.approx(100 * (row.gained - row.lost) / row.images)
        assert shown.loc[(arm, epoch), "ratio"] == pytest.approx(row.train_loss / continued.train_loss)
        assert shown.loc[(arm, epoch), "difference"] == pytest.approx(row.loss - continued.loss)
    said, free, noise = texts(job), of_run(table, "free", 1), of_run(table, "noise", 1)
    assert said["deep-name"] == "vanilla" and said["deep-lacking"] == ""
    assert numbers(said["deep-end-noise"]) == [pytest.approx(100 * (noise.gained - noise.lost) / noise.images, abs=0.051)]
    (ahead,) = made(job, "retraining-deep-specific").query("epoch == 1")["points"]
    assert ahead == pytest.approx(100 * (free.accuracy - noise.accuracy))
    assert numbers(said["deep-ratio-free"]) == [pytest.approx(free.train_loss / continued.train_loss, abs=0.0051)]
    assert said["deep-recovered-free"] == f"{int(_upper_bound(free.lost, free.gained, free.images) <= 1)} of 1 case on shapes"


def test_truncated_minus_noise_is_paired_image_by_image(shapes_jobs):
    job, table = shapes_jobs["retraining"], shapes("retraining")
    _, right = read_bits(find_table("retraining", "vanilla", "shapes", 0), {"test": 300})["test"]
    free, noise = (right[of_run(table, arm, 1).name] for arm in ("free", "noise"))
    row = made(job, "retraining-specificity").iloc[0]
    assert row["points"] == pytest.approx(100 * (free.mean() - noise.mean()))
    lost, gained = (noise & ~free).sum(), (~noise & free).sum()
    upper = _upper_bound(gained, lost, len(free))  # one-sided 95 %, inside the two-sided one of the bar
    assert row["points"] < upper < row["high"] < upper + 1
    assert numbers(texts(job)["specific-points"]) == [pytest.approx(row["points"], abs=0.051)]


def test_end_points_are_against_the_network_trained_on(shapes_jobs):
    job, table, paths = shapes_jobs["retraining"], shapes("retraining"), shapes("paths")
    ends = made(job, "retraining-ends").set_index("arm")
    other = of_run(table, "continued", 1)
    for arm in ("free", "kept", "noise", "reordered", "scratch"):
        row = of_run(table, arm, 1)
        assert ends.loc[arm, "ratio"] == pytest.approx(row.train_loss / other.train_loss, rel=1e-6)
        assert ends.loc[arm, "difference"] == pytest.approx(row.loss - other.loss, abs=1e-6)
    for arm, path in paths.groupby("arm"):
        path = path.sort_values("position")
        (low, high), x = path.accuracy.iloc[[0, -1]], path.position
        assert ends.loc[arm, "barrier"] == pytest.approx(100 * max(low + (high - low) * x - path.accuracy), abs=1e-6)
        for end, run in ((0, "continued"), (-1, arm)):
            assert path.accuracy.iloc[end] == of_run(table, run, 1).accuracy, "a path ends where the runs did"
    free = ends.loc["free"]
    allowed = max(2, ends.loc["reordered", "barrier"])
    within = free.ratio <= 1.10 and free.difference <= 0.03 and free.barrier <= allowed
    assert free["within"] == within and texts(job)["within"] == f"{int(within)} of 1 case"


def test_what_grew_back_is_that_of_the_spectra(shapes_jobs):
    job = shapes_jobs["retraining"]
    free = read_spectra(find_table("retraining", "vanilla", "shapes", 0)).query("arm == 'free'")
    ranks = dict(zip(("conv1", "conv2", "conv3", "conv4"), map(int, free["ranks"].iloc[0].split())))
    kernels = tnlib.conv_kernels(tnlib.load_model("vanilla", "shapes"))
    whole = {layer: np.linalg.svd(tnlib.Cut.parse("OUT,KW").matricize(kernel.double()).numpy(), compute_uv=False)
             for layer, kernel in kernels.items()}
    after = {layer: values.to_numpy() for layer, values in free[free.epoch == 1].groupby("layer")["value"]}
    grown = made(job, "retraining-growth").set_index("when")["beyond"]
    for when, found in (("before", whole), ("after 1 epoch", after)):
        beyond = sum((found[layer][rank:] ** 2).sum() for layer, rank in ranks.items())
        assert grown[when] == pytest.approx(beyond / sum((values ** 2).sum() for values in whole.values()), rel=1e-5)
    entropies = made(job, "retraining-entropy").set_index(["arm", "epoch", "layer"])
    p = after["conv3"] ** 2 / (after["conv3"] ** 2).sum()
    assert entropies.loc[("free", 1, "conv3"), "entropy"] == pytest.approx(-(p * np.log2(p)).sum(), rel=1e-5)
    assert entropies.loc[("free", 0, "conv3"), "untruncated"] == pytest.approx(
        float(tnlib.entanglement_entropy(kernels["conv3"], "OUT,KW")), rel=1e-5)


def test_the_chapter_asks_for_what_the_claims_file_does():
    claims = {claim["id"]: claim for claim in yaml.safe_load((ROOT / "book" / "claims.yml").read_text())["claims"]}
    source = "\n".join(cell.source for cell in nbformat.read(sections()["retraining"].path, as_version=4).cells)
    assert 'LIMITS = nb.read_claims()["claims"]["4"]["thresholds"]' in source
    assert claims["4"]["thresholds"]["share_of_cases"] == 0.5
    assert claims["3"]["thresholds"] == {"epochs": 3, "margin_points": 1, "share_of_cases": 0.5}
    assert claims["3"]["specificity"]["threshold_points"] == 1
    assert claims["3"]["specificity"]["otherwise"] in " ".join(source.split())


@pytest.mark.parametrize("dataset, training, test", [("cifar10", 0, 1), ("cifar100", 10, 20)])
def test_by_which_loss_end_points_are_worse_is_as_chapter_5_says(dataset, training, test):
    """Of 25 truncated networks each: against the untruncated network trained on."""
    ends = pd.concat([read_table(PUBLISHED / "results" / f"retraining-vanilla-{dataset}-s{seed}.csv") for seed in range(5)]).query("epoch == 5")
    own = ends[ends.arm == "continued"].set_index("seed")
    free = ends[ends.arm == "free"].set_index("seed")
    assert len(free) == 25
    assert (free["train_loss"] / own["train_loss"].reindex(free.index) <= 1.10).sum() == training
    assert (free["loss"] - own["loss"].reindex(free.index) <= 0.03).sum() == test


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_noise_ends_above_free_re_training_and_that_above_the_kept_rank_in_every_case(dataset):
    """As chapter 5 says of its first figure: in the mean over networks."""
    ends = pd.concat([read_table(PUBLISHED / "results" / f"retraining-vanilla-{dataset}-s{seed}.csv") for seed in range(5)]).query("epoch == 5")
    mean = ends.groupby(["cut", "strength", "arm"])["accuracy"].mean().unstack()[["noise", "free", "kept"]].dropna()
    assert len(mean) == 5 and (mean["noise"] > mean["free"]).all() and (mean["free"] > mean["kept"]).all()


def test_which_single_layers_come_back_is_as_chapter_5_says():
    """Of one network: none while its rank is held; of those that come back freely most are of the first two layers."""
    ends = read_table(PUBLISHED / "results" / "retraining-layers-vanilla-cifar10-s0.csv").query("epoch == 5 and cut != 'none'")
    back = ends[harmless(ends["lost"], ends["gained"], ends["images"])].groupby("arm")["truncated"].value_counts()
    assert "kept" not in back and back["free"][["conv1", "conv2"]].sum() > 0.7 * back["free"].sum() > 3


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_whether_noise_is_ahead_by_more_than_another_order_makes(dataset):
    """Of the deep network: on CIFAR-10 in every case, on CIFAR-100 not in the one that is nearest."""
    last = read_table(PUBLISHED / "results" / f"retraining-resnet50-{dataset}-s0.csv").query("epoch == 5").set_index(["cut", "strength", "arm"])["correct"]
    order = abs(last["none", 1.0, "reordered"] - last["none", 1.0, "continued"])
    ahead = last.xs("noise", level="arm") - last.xs("free", level="arm")
    assert len(ahead) == 4 and ahead.min() > 0 and (ahead.min() > order) == (dataset == "cifar10")


def test_the_last_drop_goes_with_the_error_and_less_with_the_first_drop_in_the_published_tables():
    every = pd.concat([read_table(PUBLISHED / "results" / f"{name}-vanilla-cifar10-s0.csv") for name in ("retraining", "retraining-cuts")])
    free = every[every.arm == "free"].set_index(["cut", "strength", "epoch"])
    first, last = free.xs(0, level="epoch"), free.xs(5, level="epoch")
    assert len(last) == 16
    tau = lambda found: found.corr(last["accuracy_drop"], method="kendall")
    assert tau(last["relative_error"]) > 0.8 and tau(first["accuracy_drop"]) < 0.5


# ---- other results than those of this version ---------------------------------------------------------------------

def more(table, seed, dataset, position):
    """A table of the drawn images as if it were of another network: five epochs, a case of CP too, a little shifted."""
    generator = np.random.default_rng(seed)
    table = table.assign(dataset=dataset, seed=seed, train_loss=table["train_loss"] * (1 + 0.1 * generator.random()))
    if not position:
        later = [table[table.epoch == 1].assign(epoch=epoch) for epoch in range(2, 6)]
        table = pd.concat([table, *later], ignore_index=True)
    return pd.concat([table, table[table.cut == "OUT,KW"].assign(cut="CP")], ignore_index=True)


@pytest.fixture
def other_results(monkeypatch, shapes_jobs):
    """Re-training of two networks on CIFAR-10 and, while the set holds it, of one on CIFAR-100; and of nothing else."""
    there = {"cifar10": (0, 1), "cifar100": (0,)}
    path = find_table("retraining", "vanilla", "shapes", 0)
    sources = {"retraining": read_answers(path), "retraining-answers": read_answers(path),
               "retraining-spectra": read_spectra(path), "paths": shapes("paths")}

    def give(experiment, model, dataset, measure=True):
        if model != "vanilla" or dataset not in there or experiment not in sources:
            raise FileNotFoundError(experiment)
        return pd.concat([more(sources[experiment], seed, dataset, experiment == "paths") for seed in there[dataset]],
                         ignore_index=True)

    for experiment in (*sources, "retraining-long", "retraining-cuts-answers", "retraining-layers-answers"):
        monkeypatch.setitem(results.EXPERIMENTS, experiment, partial(give, experiment))
    return there


def test_several_networks_and_data_sets(tmp_path, cells_run_here, other_results):
    captions, said = cells_run_here("retraining", seed=1, case=CASE)
    shown = "CIFAR-10: mean and standard deviation over 2 networks, CIFAR-100: one network"
    assert shown in captions["retraining-accuracy"]
    assert "seed 1, one network" in captions["retraining-spectra"]
    assert said["epochs-shown"] == "1, 3 and 5 epochs" and said["recovered-noise"] == "0, 0 and 0 of 4 cases"
    assert said["recovered-noise-each"].endswith("on CIFAR-10; 0, 0 and 0 of 2 cases on CIFAR-100")
    ends = pd.read_csv(tmp_path / "figures" / "retraining-ends.csv")
    assert len(ends[ends.arm == "free"]) == 2 * 2 + 2 and ends[ends.arm == "free"]["barrier"].notna().all()
    assert len(pd.read_csv(tmp_path / "figures" / "retraining-specificity.csv")) == 2 * 2 * 3


def test_a_data_set_that_is_not_measured_is_named(cells_run_here, other_results):
    del other_results["cifar100"]
    _, said = cells_run_here("retraining", case="CP at 0.5")
    assert said["shown"].endswith("; networks on CIFAR-100 are not re-trained yet")
    assert "CIFAR-100" not in said["within-each"]


def test_other_cases_are_counted_each_truncation_once(monkeypatch, tmp_path, cells_run_here, other_results):
    """Of one network: KW twice at the same ranks, OUT,IN twice at others; and two layers alone, whose noise never comes back."""
    answers = read_answers(find_table("retraining", "vanilla", "shapes", 0)).query("arm in ['continued', 'free', 'noise', 'kept']")
    known = more(answers, 0, "cifar10", False).replace({"cut": {"OUT,KW": "KW", "CP": "OUT,IN"}})
    again = known[known.cut != "none"].assign(strength=0.1)
    cuts = pd.concat([known, again.assign(ranks=again["ranks"].where(again.cut == "KW", "1 1 1 1"))], ignore_index=True)
    cuts.loc[cuts.cut == "OUT,IN", ["lost", "gained", "accuracy_drop"]] = 0  # as accurate as before
    one = known[known.cut != "OUT,IN"]
    layers = pd.concat([one.assign(truncated=layer, reached=layer == "conv1").where(one.cut != "none", one.assign(truncated="none", reached=True))
                        for layer in ("conv1", "conv3")]).drop_duplicates(["truncated", "cut", "arm", "epoch"]).reset_index(drop=True)
    for experiment, table in (("retraining-cuts-answers", cuts), ("retraining-layers-answers", layers)):
        monkeypatch.setitem(results.EXPERIMENTS, experiment, lambda model, dataset, measure=True, table=table: table.copy())
        monkeypatch.setattr(results, "_files", lambda experiment, *network, files=results._files:
                            [] if experiment.startswith(("retraining-cuts", "retraining-layers")) else files(experiment, *network))
    captions, said = cells_run_here("retraining", seed=1, case=CASE)
    assert "seed 0, one network" in captions["retraining-more"] and said["more-shown"].startswith("3 more ways to truncate all layers and 2 of one layer alone")
    drawn = pd.read_csv(tmp_path / "figures" / "retraining-more.csv")
    assert set(drawn[drawn.what == "all layers at once"]["case"]) == {"OUT,KW at 0.5", "CP at 0.5", "KW at 0.5", "KW at 0.1", "OUT,IN at 0.5", "OUT,IN at 0.1"}
    assert dict(drawn.groupby("layer")["reached"].all()) == {"all": bool(answers["reached"].all()), "conv1": True, "conv3": False}
    told = pd.read_csv(tmp_path / "figures" / "retraining-more-counts.csv").set_index(["truncated", "case"])
    assert told.index.get_level_values("truncated").value_counts().to_dict() == {
        "listed beforehand": 2, "other cuts and strengths": 3, "conv1 alone": 1, "conv3 alone": 1}
    end = {arm: of_run(answers, arm, 1) for arm in ("continued", "free", "noise", "kept")}
    row = told.loc[("conv3 alone", "KW at 0.5")]
    for arm in ("free", "noise", "kept"):
        within = _upper_bound(end[arm].lost, end[arm].gained, end[arm].images) <= 1
        assert row[f"{arm} back after 5"] == within and told.loc[("other cuts and strengths", "OUT,IN at 0.1"), f"{arm} back after 3"]
        assert said[f"alone-{arm}-last"] == f"{2 * int(within)} of 2 cases" and said[f"cuts-{arm}-third"] == f"{2 + int(within)} of 3 cases"
        assert row[f"{arm} ratio"] == pytest.approx(end[arm].train_loss / end["continued"].train_loss)
    assert row["ahead after 5"] == pytest.approx(100 * (end["free"].accuracy - end["noise"].accuracy))
    assert said["alone-unreached"] == "1 of 2 cases"
    order = pd.read_csv(tmp_path / "figures" / "retraining-more-order.csv").set_index("case")
    assert set(order.index) == set(drawn[drawn.what == "all layers at once"]["case"]) - {"KW at 0.1"} and order.loc["OUT,IN at 0.1", "last"] == 0
    start = of_run(answers, "free", 0)
    assert order.loc["KW at 0.5", "first"] == pytest.approx(100 * (start.lost - start.gained) / start.images)


def test_how_near_truncations_of_all_layers_come_back_is_as_chapter_5_says():
    """The last drop goes with the error; where the first and the last drop go against each other, it is for KW, KH and OUT,IN."""
    cuts = [read_table(find_table(experiment, "vanilla", "cifar10", 0)) for experiment in ("retraining", "retraining-cuts")]
    runs = pd.concat(cuts).query("cut != 'none' and arm == 'free'").set_index(["strength", "cut", "epoch"]).sort_index()
    runs = runs[~runs.index.duplicated()]
    error, taus = runs["relative_error"].xs(0, level="epoch"), {}
    first, last = (runs["accuracy_drop"].xs(epoch, level="epoch") for epoch in (0, 5))
    for strength in (0.5, 0.1):
        assert scipy.stats.kendalltau(error[strength], last[strength]).statistic > 0.85
        taus[strength] = scipy.stats.kendalltau(first[strength], last[strength]).statistic
    assert taus[0.5] < 0 < taus[0.1]
    few = ["KW", "KH", "OUT,IN"]  # of three, three and nine ranks
    left = 1 - first[0.5][few] / (runs["accuracy"].xs(0, level="epoch")[0.5][few] * 100 + first[0.5][few] - 10)
    assert left[["KW", "OUT,IN"]].max() < 0.3 and 0.45 < left["KH"] < 0.55, "two of them end far below a half"
    assert first[0.5][few].mean() > first[0.5].drop(few).mean() and last[0.5][few].max() < last[0.5].drop(few).min()


def test_what_is_not_measured_beside_the_listed_cases_is_said(tmp_path, cells_run_here, other_results):
    captions, said = cells_run_here("retraining", case=CASE)
    assert said["more-shown"] == "nothing else yet, on CIFAR-10: what follows shows the listed cases again, for seed 0"
    assert said["cuts-free-last"] == "–" and "one layer alone" not in captions["retraining-more"]
    assert set(pd.read_csv(tmp_path / "figures" / "retraining-more-counts.csv")["truncated"]) == {"listed beforehand"}


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_what_comes_back_of_truncations_and_of_noise_is_as_chapter_5_says(dataset):
    """Of all published runs, against the squared norm of the trained kernels: a tenth of what was dropped is back beyond the ranks, what noise
    put there stays, and what noise took in front comes back."""
    def squares(kernel, cut):  # of the singular values, the largest first
        matrix = tnlib.Cut.parse(cut).matricize(kernel.double()).numpy()
        matrix = matrix if len(matrix) <= matrix.shape[1] else matrix.T
        return np.linalg.eigvalsh(matrix @ matrix.T)[::-1]

    shares = []
    for seed in range(5):
        spectra = read_spectra(PUBLISHED / "results" / f"retraining-vanilla-{dataset}-s{seed}.csv")
        kernels = tnlib.conv_kernels(tnlib.load_model("vanilla", dataset, seed))
        norm = sum(kernel.double().square().sum().item() for kernel in kernels.values())
        ranks = spectra[spectra.arm == "free"].groupby(["cut", "strength"])["ranks"].first()
        for (cut, strength, arm, epoch), part in spectra[spectra.arm.isin(["free", "noise"]) & (spectra.cut != "CP")].groupby(["cut", "strength", "arm", "epoch"]):
            kept = {layer: np.inf if rank == "-" else int(rank) for layer, rank in zip(kernels, ranks[cut, strength].split())}
            beyond = part[part["index"] > part["layer"].map(kept)]
            dropped = sum(squares(kernel, cut)[kept[layer]:].sum() for layer, kernel in kernels.items() if kept[layer] < np.inf) if (arm, epoch) == ("free", 5) else np.nan
            shares.append({"arm": arm, "epoch": epoch, "tail": (beyond["value"] ** 2).sum() / norm, "all": (part["value"] ** 2).sum() / norm, "dropped": dropped / norm})
    shares = pd.DataFrame(shares)
    mean = shares.groupby(["arm", "epoch"]).mean()
    assert len(shares) == 2 * 5 * 4 * 6
    ended = shares[(shares.arm == "free") & (shares.epoch == 5)]
    assert (ended["tail"] / ended["dropped"]).between(0.05, 0.15).all()
    assert mean["tail"]["noise", 0] > 0.2 and mean["tail"]["noise", 5] == pytest.approx(mean["tail"]["noise", 0], rel=0.1)
    assert mean["all"]["noise", 5] > mean["all"]["noise", 0] + 0.05


@pytest.mark.parametrize("path", sorted((PUBLISHED / "results").glob("retraining*.csv")), ids=lambda path: path.stem)
def test_matched_noise_begins_with_the_norm_of_its_truncation(path):
    """Layer by layer, from the singular values noted before training: Σs² of the kernel with noise is that of the truncated one."""
    if "statistics" in path.stem:  # networks that are not trained; no spectra are noted
        return
    begun = read_spectra(path).query("epoch == 0 and arm in ('free', 'noise')")
    case = [name for name in ("truncated", "cut", "strength") if name in begun]
    norms = (begun["value"] ** 2).groupby([begun[name] for name in (*case, "layer", "arm")]).sum().unstack("arm")
    assert len(norms) and ("noise" in norms or "long" in path.stem)  # of the long runs there are none
    for noise, free in norms.dropna().to_numpy() if "noise" in norms else ():
        assert noise == pytest.approx(free, rel=5e-3)


@pytest.mark.parametrize("case, message", [("OUT at 0.9", "case = 'OUT at 0.9': it takes one of 'OUT at 0.5', 'OUT,KW at 0.5'"),
                                           ("OUT at 0.5", f"case = 'OUT at 0.5': measured are '{CASE}'")])
def test_a_case_that_there_is_not_names_those_that_there_are(shapes_jobs, papermill, case, message):
    status, said = papermill("retraining", *(word for name in ("profile", "dataset", "compare") for word in ("-p", name, "shapes")),
                             "-p", "deep", "vanilla", "-p", "case", case)
    assert status == 1 and message in said
