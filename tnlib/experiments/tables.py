"""Tables of results as files: `<experiment>-<network>.csv` (one tidy row a cell), .bits.safetensors (each image right or
wrong, as differences from the untruncated network's) and .json (the card)."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from .drops import counts, pack_difference, unpack_difference
from .evaluation import Evaluation, split_arrays
from .experiment import Experiment
from .files import atomic_path, sha256_of, write_json
from .truncations import outcome
from .weights import read_card

SPECTRUM = "spectrum"  # a label that is kept beside the bits, by row and layer, not in the table
UNTRUNCATED = "untruncated"  # the key of the network as it is, in each split
OUTCOMES = ("images", "correct", "lost", "gained", "accuracy", "accuracy_drop", "loss")


def write_table(entry: Experiment, store, path, about: dict, dataset) -> Path:
    """Write table, bits and card from the store; each file whole or not at all, the card last. `about`: what the card
    says of what was measured, and how. Raises `ValueError` where the store is about another number of images."""
    rows, bits, untruncated = [], {}, {}
    for split in entry.splits:
        chosen = entry.chosen_images(dataset, split)
        images = len(split_arrays(dataset, split)[1]) if chosen is None else len(chosen)
        stored = [cell for cell in store.cells() if cell[1]["split"] == split]
        if any(len(packed) != -(-images // 8) for _, _, packed, _ in stored):
            raise ValueError(f"{store.path} holds answers to another number of {split} images than the {images} that are evaluated now: move it "
                             "away to measure anew")
        found = [(key, labels, np.unpackbits(packed, count=images).astype(bool), loss) for key, labels, packed, loss in stored]
        cells = [cell for cell in found if cell[0] != f"{split} {UNTRUNCATED}"]
        if not cells:  # of a measurement that was cut off before
            continue
        _, _, baseline, loss = next(cell for cell in found if cell[0] == f"{split} {UNTRUNCATED}")
        whole = Evaluation(baseline, loss)
        untruncated[split] = outcome(whole, whole)
        right = np.stack([correct for _, _, correct, _ in cells])
        table = pd.DataFrame([{name: value for name, value in labels.items() if name != SPECTRUM}
                              for _, labels, _, _ in cells])
        rows.append(table.assign(**counts(baseline, right), loss=[loss for *_, loss in cells]))
        bits |= {f"{SPECTRUM}.{row}.{layer}": np.array(values, dtype=np.float32)
                 for row, (_, labels, _, _) in enumerate(cells) for layer, values in labels.get(SPECTRUM, {}).items()}
        packed = [pack_difference(correct, baseline) for correct in right]
        bits |= {f"{split}.untruncated": np.packbits(baseline),
                 f"{split}.ends": np.cumsum([len(part) for part in packed], dtype=np.int64),
                 f"{split}.cells": np.frombuffer(b"".join(packed), dtype=np.uint8)}
    table = pd.concat(rows, ignore_index=True)
    if "test" in entry.splits and (chosen := entry.chosen_images(dataset, "test")) is not None:
        about = about | {"test_images": {"number": len(chosen), "seed": 0, "sha256": _digest(chosen)}}
    what = {name: about[name] for name in ("model", "dataset", "seed")}
    columns = [*what, *(column for column in table if column not in OUTCOMES), *OUTCOMES]
    table = table.assign(**what)[columns]
    with atomic_path(bits_path(path)) as temporary:
        save_file(bits, temporary)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.9g", lineterminator="\n")
    write_json(path.with_suffix(".json"), about | {
        "untruncated": untruncated, "rows": len(table), "sha256": sha256_of(path),
        "bits_sha256": sha256_of(bits_path(path)), "calls": store.calls()})
    return path


def _digest(indices: np.ndarray) -> str:
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()


def bits_path(path: Path) -> Path:
    """Where the per-image bits of a table are."""
    return path.with_suffix(".bits.safetensors")


# ---- reading -----------------------------------------------------------------------------------------------------

def has_card(path: Path) -> bool:
    """Whether a table, or weights, and its card are there: the card is written last."""
    return path.is_file() and path.with_suffix(".json").is_file()


def read_table(path) -> pd.DataFrame:
    """A table of results. Raises `ValueError` when it is not the file that its card describes."""
    path = Path(path)
    _check(path, read_card(path)["sha256"])
    return pd.read_csv(path)


def read_bits(path, images: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split → (untruncated [images], cells [rows, images]) of the table `path`, a .csv, bool; `images`: how many, by split.

    Rows are in the table's order. Raises `ValueError` for a damaged file, and `FileNotFoundError` for one that is not there.
    """
    path = Path(path)
    _check(bits_path(path), read_card(path).get("bits_sha256"))
    stored, found = load_file(bits_path(path)), {}
    for split, n in images.items():
        untruncated = np.unpackbits(stored[f"{split}.untruncated"], count=n).astype(bool)
        parts = np.split(stored[f"{split}.cells"], stored[f"{split}.ends"][:-1])
        found[split] = untruncated, np.stack([unpack_difference(part.tobytes(), untruncated) for part in parts])
    return found


def read_answers(path) -> pd.DataFrame:
    """A table with a column more, `answers`: which images a row answers right, bool (images,). Raises as `read_bits`."""
    table = read_table(path)
    bits = read_bits(path, table.groupby("split", sort=False)["images"].first().to_dict())
    return table.assign(answers=[row for _, right in bits.values() for row in right])


def read_spectra(path) -> pd.DataFrame:
    """The singular values that a table's rows have beside them: the table's columns, `layer`, `index` (from 1), `value`.

    One row a value. Raises `ValueError` for a damaged file.
    """
    path = Path(path)
    _check(bits_path(path), read_card(path).get("bits_sha256"))
    parts = [pd.DataFrame({"row": row, "layer": layer, "index": np.arange(1, len(values) + 1), "value": values})
             for row, layer, values in _spectra(path)]
    return read_table(path).merge(pd.concat(parts), left_index=True, right_on="row").drop(columns="row").reset_index(drop=True)


def _spectra(path):
    """(row, layer, singular values) of all that are beside a table's rows."""
    for name, values in load_file(bits_path(path)).items():
        if name.startswith(f"{SPECTRUM}."):
            _, row, layer = name.split(".", 2)
            yield int(row), layer, values


def read_cells(path) -> list[tuple[dict, np.ndarray, float]]:
    """What a store holds of a table: (labels, correct [images], loss) of the untruncated network, then of every row; split by
    split. Raises as `read_bits`."""
    table, untruncated = read_table(path), read_card(path)["untruncated"]
    bits = read_bits(path, {split: whole["images"] for split, whole in untruncated.items()})
    beside: dict[int, dict] = {}
    for row, layer, values in _spectra(path):
        beside.setdefault(row, {})[layer] = values.tolist()
    labels, cells = table.drop(columns=["model", "dataset", "seed", *OUTCOMES]).astype(object), []
    for split, whole in untruncated.items():
        before, right = bits[split]
        cells.append(({"split": split}, before, whole["loss"]))
        for correct, (row, its) in zip(right, labels[labels["split"] == split].iterrows()):
            about = its.dropna().to_dict() | ({SPECTRUM: beside[row]} if row in beside else {})
            cells.append((about, correct, table["loss"][row]))
    return cells


def _check(path, expected):
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; restore it (git checkout) or measure it again")
    if sha256_of(path) != expected:
        raise ValueError(f"{path} is corrupt or was altered: its sha256 is {sha256_of(path)[:16]}…, its card says "
                         f"{str(expected)[:16]}…; restore it (git checkout) or measure it again")
