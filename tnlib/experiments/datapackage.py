"""datapackage.json: what every published table is and what its columns mean, as a Frictionless Data Package."""

from pathlib import Path

import pandas as pd
from filelock import FileLock

from .files import RUNS, sha256_of, write_json
from .tables import has_card
from .weights import read_card

COLUMNS = {
    "model": ("string", "name of the network"),
    "dataset": ("string", "name of the data set on which it was trained and evaluated"),
    "seed": ("integer", "the training run"),
    "split": ("string", "images of the row: test, validation (held out of training) or train"),
    "layers": ("string", "which layers are truncated together: all, or all but the first"),
    "layer": ("string", "the layer whose kernel is replaced, as in named_modules()"),
    "cut": ("string", "the cut, named by the modes of its rows"),
    "rank": ("integer", "rank kept; number of terms of a CP; each of the four bonds of a ring"),
    "max_rank": ("integer", "the largest rank of a cut or CP; the least at which a ring is no smaller than the kernel"),
    "fraction": ("number", "share of the largest rank kept, rounded up to a rank"),
    "common": ("string", "what the truncated layers have in common: the fraction of the largest rank, or the relative error"),
    "level": ("number", "the fraction of the largest rank kept, rounded up; or what no layer exceeds: its relative error or, of a "
                        "compression, the cost by its arm's measure"),
    "truncated": ("string", "the one layer that is truncated; none: no layer"),
    "strength": ("number", "share of (accuracy − chance) that the truncation leaves, on held-out images; 1: no truncation"),
    "arm": ("string", "how it is trained on, or from what: free, kept, noise, continued, reordered or scratch; of a compression "
                      "what the ranks are chosen by, or narrower"),
    "epoch": ("integer", "epochs of re-training, after those of the network's own; 0: before it"),
    "position": ("number", "on the straight path: 0 where the continued network ended, 1 where the arm did"),
    "distance": ("number", "norm of the difference of the weights at the path's ends, over that of the continued network's"),
    "statistics": ("string", "of batch norm: stored with the weights, or re-estimated on training images, as many as the card says"),
    "reached": ("boolean", "whether the accuracy falls so far at all; where not, every layer has rank 1"),
    "budget": ("number", "share of the convolutions' parameters that a compression may keep"),
    "channels": ("string", "channels that come out of each convolution, in forward order"),
    "cuts": ("string", "cut at which each convolution is truncated, in forward order; -: not truncated"),
    "ranks": ("string", "rank of each convolution in forward order, or of the one truncated; -: not truncated"),
    "kind": ("string", "what stands in the kernel's place: truncation, noise, random-rank, random-error, smallest, filters, mean"),
    "gauge": ("string", "of the same function: trained, balanced or random; with batch norm trained or folded"),
    "rank_out": ("integer", "rank kept of the mode OUT"),
    "rank_in": ("integer", "rank kept of the mode IN"),
    "bond_error": ("number", "the relative error that the truncation at each bond of a train alone may have"),
    "rank_1": ("integer", "bond of a train between IN and KH"),
    "rank_2": ("integer", "bond of a train between KH and KW"),
    "rank_3": ("integer", "bond of a train between KW and OUT"),
    "draw": ("integer", "number of the random draw"),
    "norm_kept": ("number", "‖K'‖/‖K‖ (Frobenius) of the stored kernel; over all layers where several are replaced"),
    "relative_error": ("number", "‖K − K'‖/‖K‖ (Frobenius) of the stored kernel; over all layers where several are replaced"),
    "parameters": ("integer", "entries of the factors that make K', without bias; over all layers where several are replaced"),
    "network_parameters": ("integer", "the same of the whole network: with biases and linear layers"),
    "data_aware_error": ("number", "‖conv(x, K − K')‖/‖conv(x, K)‖ over inputs x of the layer from training images, as many as the card says"),
    "entropy": ("number", "entanglement entropy of the whole kernel at the cut, in this gauge, in bits"),
    "train_loss": ("number", "mean cross-entropy on fixed training images, as many as the card says, not augmented"),
    "train_accuracy": ("number", "share of the same training images answered right"),
    "fit": ("number", "1 − relative error of the best start of a CP or a ring"),
    "largest_component_norm": ("number", "norm of the largest term of a CP or a ring, relative to ‖K‖"),
    "converged": ("boolean", "whether the fit stopped before its iterations were used up"),
    "images": ("integer", "number of images evaluated"),
    "correct": ("integer", "number of images answered right"),
    "lost": ("integer", "images right with the untruncated network and wrong here"),
    "gained": ("integer", "images wrong with the untruncated network and right here"),
    "accuracy": ("number", "correct / images"),
    "accuracy_drop": ("number", "accuracy of the untruncated network minus accuracy, in percentage points"),
    "loss": ("number", "mean cross-entropy in nats"),
}


def describe_results(folder) -> Path:
    """Write `folder`/datapackage.json for the tables in `folder`/results, and return its path.

    A table without a card, which another process is about to write, is left out: that process describes it. Raises
    `ValueError` for a column that `COLUMNS` does not describe, before anything is written.
    """
    folder = Path(folder)
    RUNS.mkdir(exist_ok=True)
    with FileLock(RUNS / "datapackage.lock"):  # of two, the one that lists the folder later also writes later
        resources = [_resource(folder, path) for path in sorted((folder / "results").glob("*.csv")) if has_card(path)]
        write_json(folder / "datapackage.json", {
            "name": "tnlib-results", "title": "Accuracy of convolutional networks with truncated kernels",
            "licenses": [{"name": "CC-BY-4.0", "path": "https://creativecommons.org/licenses/by/4.0/"}],
            "resources": resources})
    return folder / "datapackage.json"


def _resource(folder: Path, path: Path) -> dict:
    card = read_card(path)
    columns = pd.read_csv(path, nrows=0).columns
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise ValueError(f"{path.name} has columns that datapackage.COLUMNS does not describe: {', '.join(unknown)}; "
                         "say there what they are")
    return {"name": path.stem, "path": str(path.relative_to(folder)), "format": "csv", "mediatype": "text/csv",
            "encoding": "utf-8", "bytes": path.stat().st_size, "hash": f"sha256:{sha256_of(path)}",
            "description": f"{card['experiment']}, {card['model']} on {card['dataset']}, seed {card['seed']}",
            "schema": {"fields": [{"name": name, "type": COLUMNS[name][0], "description": COLUMNS[name][1]}
                                  for name in columns]}}
