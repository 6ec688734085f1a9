"""A tiny network with its card and its data set, in folders of their own."""

import numpy as np
import pytest
import torch

from tnlib.experiments import measurements, retraining, weights
from tnlib.experiments.dataset import Dataset
from tnlib.experiments.networks import Vanilla


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The data set `small`; an untrained vanilla network "trained" on it is in tmp_path/weights, results go to tmp_path."""
    random = np.random.RandomState(0)
    image = lambda n: random.randint(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    dataset = Dataset(image(60), np.arange(60) % 3, image(200), np.arange(200) % 3, name="small")
    torch.manual_seed(0)
    architecture = {"channels": [4, 5, 6, 7], "classes": 3, "image_size": 16}
    weights.save_weights(Vanilla(**architecture), tmp_path / "weights" / "vanilla-small-s0.safetensors",
                         {"model": "vanilla", "dataset": "small", "seed": 0, "architecture": architecture,
                          "core_fingerprint": dataset.core_fingerprint})
    monkeypatch.setattr(weights, "FOLDERS", (tmp_path / "weights",))
    for module in (measurements, retraining):
        monkeypatch.setattr(module, "RUNS", tmp_path)
    return dataset
