"""Tables of which it is known what the claims' tests make of them."""

import pandas as pd

from tnlib.experiments.retraining import CASES

CUTS = ("KW", "KH", "OUT", "IN", "OUT,IN", "OUT,KW", "OUT,KH")


def points_of(stars):
    """One row a (seed, layer, cut); `stars`: function of these to λ*."""
    return pd.DataFrame([{"seed": seed, "layer": f"conv{layer}", "cut": cut, "lambda_star": stars(seed, layer, k)}
                         for seed in range(3) for layer in (1, 2, 3, 4) for k, cut in enumerate(CUTS)])


def points_in_blocks_of(stars):
    """One row a (seed, layer, cut) of ResNet-50; `stars`: function of seed, depth, stage from 0 and block from 0 to λ*."""
    rows, depth = [], 0
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            for position, size in (("conv1", "1×1"), ("conv2", "3×3"), ("conv3", "1×1")):
                depth += 1
                rows += [{"seed": seed, "layer": f"layer{stage + 1}.{block}.{position}", "cut": cut, "depth": depth, "size": size,
                          "stage": f"layer{stage + 1}", "position": position, "lambda_star": stars(seed, depth, stage, block)}
                         for seed in range(3) for cut in (CUTS if size == "3×3" else ["OUT"])]
    return pd.DataFrame(rows)


def deficits_of(share, gauge="balanced"):
    rows = [{"seed": seed, "gauge": g, "kind": kind, "max_rank": rank, "deficit_share": share + 0.001 * seed if (
        g == gauge and kind == "kernel" and rank >= 8) else 9.0}
        for seed in range(3) for g in ("trained", "balanced", "random") for kind in ("kernel", "shuffled") for rank in (3, 8, 64)]
    return pd.DataFrame(rows)


def ratios_of(*means):
    return pd.DataFrame([{"seed": seed, "ratio": mean * factor} for seed, mean in enumerate(means) for factor in (0.5, 2.0)])


def retraining_of(recovering, seeds=3, epochs=5, slow=(), noise_behind=0.02, train_loss=0.30, loss=0.50):
    """Rows as of the experiment: `recovering` cases lose 20 of 10,000 images from epoch 1 (`slow` ones from 5), others 900."""
    rows = []
    for seed in range(seeds):
        for epoch in range(epochs + 1):
            for place, case in enumerate(CASES):
                good = place < recovering and epoch >= (5 if place in slow else 1)
                for arm in ("free", "kept", "noise"):
                    lost = 20 if good else 900
                    accuracy = 0.86 - lost / 10_000 - (noise_behind if arm == "noise" else 0)
                    rows.append({"seed": seed, "cut": case.cut, "strength": case.strength, "arm": arm, "epoch": epoch, "images": 10_000,
                                 "lost": lost, "gained": 0, "accuracy": accuracy,
                                 "train_loss": train_loss if place < recovering else 0.60, "loss": loss})
            rows += [{"seed": seed, "cut": "none", "strength": 1.0, "arm": arm, "epoch": epoch, "images": 10_000, "lost": 0, "gained": 0,
                      "accuracy": 0.86, "train_loss": 0.30, "loss": 0.49} for arm in ("continued", "reordered", "scratch")]
    return pd.DataFrame(rows)


def compression_of(over_fraction, over_narrower, seeds=3, arms=("map", "fraction", "norm", "data-aware", "narrower")):
    """Rows as of the experiment: points by which ranks chosen by map are ahead, by budget; a tenth more for each further seed."""
    behind = {"fraction": over_fraction, "narrower": over_narrower, "norm": (2, 2, 2), "data-aware": (0, 0, 0), "map": (0, 0, 0)}
    return pd.DataFrame([
        {"seed": seed, "arm": arm, "budget": budget, "epoch": epoch, "images": 10_000,
         "accuracy": (0.8 - (behind[arm][k] + 0.1 * seed * (arm != "map")) / 100 if epoch == 5 else 0.5)}
        for seed in range(seeds) for arm in arms for k, budget in enumerate((0.5, 0.25, 0.125))
        for epoch in (range(6) if arm != "narrower" else (5,))])


def paths_of(dip, reference=0.0, seeds=3):
    """Straight paths that dip by `dip` points in the middle; that between two continued runs by `reference`."""
    rows = []
    for seed in range(seeds):
        for cut, strength, arm in [*((case.cut, case.strength, "free") for case in CASES), ("none", 1.0, "reordered")]:
            depth = (dip if arm == "free" else reference) / 100
            rows += [{"seed": seed, "cut": cut, "strength": strength, "arm": arm, "position": position / 10,
                      "accuracy": 0.86 - 0.02 * position / 10 - depth * (1 - abs(position / 5 - 1))} for position in range(11)]
    return pd.DataFrame(rows)
