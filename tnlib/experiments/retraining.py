"""Re-training: what a truncated network becomes when it is trained on, beside what it is compared with.

All arms are trained for the same steps, on the same batches, at the same learning rates.
"""

import copy
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from ..tensors.cuts import singular_values
from ..tensors.factors import KernelFactors
from .batch_norm import AUGMENTATION_SEED, augmentation, reestimated, some_batch_norms
from .controls import matched_noise
from .dataset import Dataset, as_argument, balanced_sample
from .evaluation import Evaluation, default_device, evaluate
from .experiment import Runs
from .files import RUNS
from .networks import Recipe, conv_kernels, network
from .replacements import Replacements, with_kernels
from .strengths import CASES, CP_FRACTIONS, CP_ITERATIONS, STEPS, Case, truncated_to
from .training import Training, augmented, training_precision
from .weights import find_weights, read_card, read_sealed, save_sealed, stem

# A restart at the rate that the first training had some three of its 24 epochs before the end, and down to 0 again.
PEAK_LR, WARMUP, EPOCHS = 0.02, 0.1, 5
DRAWS, OTHER_DRAWS, FRESH = 500, 600, 10_000  # seeds of the batches, of another order of them, of fresh weights
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # what batch norm stores beside its parameters
TRAIN_IMAGES, TRAIN_SEED = 5_000, 13  # of the training images, on which loss and accuracy are evaluated


# ---- the networks that are trained -------------------------------------------------------------------------------

class _Rebuilt(nn.Module):
    """A kernel as a function of its factors, which are what is trained: its rank cannot grow."""

    def __init__(self, factors: KernelFactors):
        super().__init__()
        self.factors = factors

    def forward(self, *factors):
        return dataclasses.replace(self.factors, factors=factors).to_kernel()

    def right_inverse(self, kernel):
        return tuple(factor.clone() for factor in self.factors.factors)  # training writes into what it is given


def with_rank_kept(model: nn.Module, factors: dict[str, KernelFactors]) -> nn.Module:
    """A copy of `model` whose truncated layers have their factors for parameters, of equal norms: √S on both sides."""
    copied = copy.deepcopy(model)
    for layer, factor in factors.items():
        parametrize.register_parametrization(copied.get_submodule(layer), "weight", _Rebuilt(factor))
    return copied


def with_noise(model: nn.Module, factors: dict[str, KernelFactors], seed: int) -> nn.Module:
    """A copy of `model` with matched noise in the truncated layers: each of its truncation's norm, error and overlap."""
    approximations = {layer: factor.to_kernel() for layer, factor in factors.items()}
    labels = {layer: tuple(map(len, factor.factors)) for layer, factor in factors.items()}  # what the draw depends on
    cells = Replacements(conv_kernels(model), 1, lambda: iter([(labels, approximations)]))
    _, kernels = next(iter(matched_noise(cells, 1, seed)))
    return with_kernels(model, kernels)


# ---- the runs ----------------------------------------------------------------------------------------------------

def restart(card: dict, epochs: int = EPOCHS) -> Recipe:
    """The recipe on the card of some weights, but shorter and at a lower learning rate."""
    own = Recipe(**card.get("recipe", {}))
    return dataclasses.replace(own, epochs=epochs, peak_lr=min(PEAK_LR, own.peak_lr), warmup=WARMUP, sides=())


@dataclass
class Retraining(Runs):
    """All runs of `model` (called `name`) on `dataset`: for `epochs`, of these `cases` in these `arms`; training loss is
    measured on `evaluated` training images.

    Runs without a truncation are "continued" (the untruncated network), "reordered" (the same on other batches) and
    "scratch" (fresh weights); arms of a case are "free" (the rank may grow back), "kept" (through the factors) and
    "noise" (matched noise in the truncation's place, free).
    """

    name: str
    model: nn.Module
    dataset: Dataset
    seed: int
    epochs: int = EPOCHS
    cases: tuple[Case, ...] = CASES
    whole: tuple[str, ...] = ("continued", "reordered", "scratch")
    arms: tuple[str, ...] = ("free", "noise", "kept")  # first what the claims ask for: a run takes minutes
    evaluated: int = TRAIN_IMAGES
    spectra: list[str] | None = None  # the layers whose singular values are noted (None: all)

    def __post_init__(self):
        self._truncated = {}  # case → what `truncated_to` gives of it

    @cached_property
    def recipe(self) -> Recipe:
        return restart(self.card, self.epochs)

    @cached_property
    def card(self) -> dict:
        """That of the network's weights."""
        return read_card(find_weights(self.name, self.dataset.name, self.seed))

    @cached_property
    def some_training_images(self) -> Dataset:
        """Class-balanced training images as a data set's test images: to evaluate on, without augmentation."""
        labels = self.dataset.train_labels
        chosen = balanced_sample(labels, min(self.evaluated, len(labels)), TRAIN_SEED)
        return Dataset(self.dataset.train_images[chosen], labels[chosen], classes=self.dataset.classes)

    def mixed_training_images(self) -> np.ndarray:
        """Those images for batch norm's statistics, augmented and mixed: they are sorted by class, and a batch of one class
        has other statistics (with which ResNet-50 answers 77 % of CIFAR-10 right and not 93 %)."""
        images = self.some_training_images.test_images
        mixed = np.random.RandomState(AUGMENTATION_SEED).permutation(len(images))
        return augmented(images[mixed], self.recipe, AUGMENTATION_SEED)

    def parameters(self) -> dict:
        """What a table of the runs does not say of how they were made: how far a case truncates was found in so many
        steps; the seeds are those of the batches, of their other order, of fresh weights and of noise."""
        draws = 1000 * self.seed
        return {"recipe": dataclasses.asdict(self.recipe), "bisection_steps": STEPS, "cp_fractions": CP_FRACTIONS,
                "cp_iterations": CP_ITERATIONS, "evaluated_train_images": {
                    "number": len(self.some_training_images.test_labels), "seed": TRAIN_SEED},
                "seeds": {"batches": draws + DRAWS, "reordered": draws + OTHER_DRAWS, "fresh": FRESH + self.seed,
                          "noise": self.seed}}

    def runs(self) -> list[tuple[Case | None, str]]:
        return [*((None, arm) for arm in self.whole), *((case, arm) for arm in self.arms for case in self.cases)]

    def keys(self, case: Case | None, arm: str) -> list[dict]:
        """What tells the rows of a run apart: one an epoch, 0 being before it."""
        return [self.called(case) | {"arm": arm, "epoch": epoch} for epoch in range(self.epochs + 1)]

    def called(self, case: Case | None) -> dict:
        """The columns that name a case; where layers are truncated alone, `truncated` says which."""
        case = case or Case("none", 1.0, "none")
        alone = {"truncated": case.layer} if any(other.layer for other in self.cases) else {}
        return {"cut": case.cut, "strength": case.strength} | alone

    def prepared(self, case: Case | None, arm: str, level: float | None = None) -> "Retraining":
        """A copy that knows how far the case truncates: to be found once, and not by each worker that takes an arm.

        `level`: the ε where it is known.
        """
        if case is not None and case not in self._truncated:
            self._truncated[case] = truncated_to(self.model, self.dataset, case, level)
        prepared = copy.copy(self)
        prepared._truncated = {case: self._truncated[case]} if case is not None else {}
        return prepared

    def run(self, case: Case | None, arm: str) -> Iterator[tuple[dict, Evaluation]]:
        """Train, and yield (labels, test evaluation) before the first epoch and after each.

        Labels: those of `keys`, of `truncated_to`, `train_loss` and `train_accuracy` on `some_training_images`, and
        `spectrum`: layer of `spectra` → singular values at the case's cut. The last weights of the runs "free", "continued" and
        "reordered" are kept, see `last_weights`.
        """
        module, about = self.start(case, arm)
        cut = "OUT,KW" if case is None or case.cut == "CP" else case.cut
        training = self.training(module, arm)
        for key in self.keys(case, arm):
            if key["epoch"]:
                training(key["epoch"] - 1)
            seen = evaluate(module, self.some_training_images)
            kernels = conv_kernels(module)
            # On the CPU, so that a GPU is left to other runs.
            spectrum = {layer: singular_values(kernels[layer].float().cpu(), cut) for layer in self.spectra or kernels}
            yield key | about | {
                "train_loss": seen.loss, "train_accuracy": seen.accuracy,
                "spectrum": {layer: [float(f"{value:.6g}") for value in values.tolist()] for layer, values in spectrum.items()},
            }, evaluate(module, self.dataset)
        if arm in ("free", "continued", "reordered"):
            self._keep(module, case, arm)

    def training(self, module: nn.Module, arm: str) -> Training:
        """The training of `module`, which a run starts from."""
        draws = 1000 * self.seed + (OTHER_DRAWS if arm == "reordered" else DRAWS)
        return Training(module, self.dataset, self.recipe, draws, default_device())

    def last_weights(self, case: Case | None, arm: str):
        """Where the weights that a run ends in are: below runs/, for the paths between them."""
        case = "" if case is None else f"-{case.cut.replace(',', '')}-{case.strength}" + f"-{case.layer}" * bool(case.layer)
        return RUNS / "retrained" / f"{stem(self.name, self.dataset.name, self.seed)}-{self.epochs}{case}-{arm}.safetensors"

    def start(self, case: Case | None, arm: str) -> tuple[nn.Module, dict]:
        """The network that a run trains, and the labels of `truncated_to`."""
        if case is None:
            about = {"level": 0.0, "reached": True, "ranks": "-", "norm_kept": 1.0, "relative_error": 0.0,
                     "parameters": sum(kernel.numel() for kernel in conv_kernels(self.model).values())}
            return (self.fresh() if arm == "scratch" else copy.deepcopy(self.model)), about
        factors, about = self.prepared(case, arm)._truncated[case]
        build = {"free": with_kernels, "kept": with_rank_kept,
                 "noise": lambda model, factors: with_noise(model, factors, self.seed)}[arm]
        return build(self.model, factors), about

    def fresh(self, **changed) -> nn.Module:
        """The network with fresh weights, which sees images as it does; `changed`: other arguments of its architecture."""
        with torch.random.fork_rng():
            torch.manual_seed(FRESH + self.seed)
            module = network(self.name).build(**self.card["architecture"] | changed)
        normalize = {name: buffer for name, buffer in self.model.named_buffers() if name.startswith("normalize.")}
        module.load_state_dict(module.state_dict() | normalize)
        return module.eval()

    def _keep(self, module, case, arm):
        tensors = {name: tensor.cpu().contiguous() for name, tensor in module.state_dict().items()}
        header = {"from": self.card["sha256"], "made": self._made()}
        save_sealed(self.last_weights(case, arm), header, tensors)

    def _made(self) -> str:
        return json.dumps(self.parameters() | {"precision": training_precision(self.recipe)}, sort_keys=True)

    def read_last_weights(self, case: Case | None, arm: str) -> dict[str, torch.Tensor]:
        """What `last_weights` holds. Raises `FileNotFoundError` where it is not there, and `ValueError` where it is damaged
        or the run began in other weights than these, or was made in another way."""
        path = self.last_weights(case, arm)
        again = (f"move {stem(self.name, self.dataset.name, self.seed)}'s retraining .sqlite out of {path.parents[1] / 'results'}, "
                 "if there is one, and measure retraining of this network on this machine: "
                 f"tnlib measure retraining {self.name} {as_argument(self.dataset.name)} --seed {self.seed}")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: the paths are between the weights that re-training ended in; {again}")
        header, tensors = read_sealed(path, again)
        if header.get("from") != self.card["sha256"]:
            raise ValueError(f"{path} is where a run ended that began in other weights than {self.card['sha256'][:16]}…; {again}")
        if header.get("made") != self._made():
            raise ValueError(f"{path} is where a run ended that was made in another way (recipe, seeds or precision) than this "
                             f"one would be; {again}")
        return tensors


# ---- where they start, with other statistics of batch norm ---------------------------------------------------------

@dataclass
class Starts(Runs):
    """What the runs of `.retraining` start from, but with batch norm's statistics estimated anew, and nothing trained: what
    training wins back may be only that.

    `.levels`: (cut, strength) → the ε of a case, as its runs have it; cases without one are left out. Raises `ValueError`
    for a network without batch norm.
    """

    retraining: Retraining
    levels: dict[tuple[str, float], float]

    def __post_init__(self):
        some_batch_norms(self.retraining.model)

    def parameters(self) -> dict:
        """Those of the runs, and how training images were augmented for batch norm."""
        return self.retraining.parameters() | augmentation(self.retraining.recipe)

    def runs(self) -> list[tuple[Case | None, str]]:
        cases = [case for case in self.retraining.cases if (case.cut, case.strength) in self.levels]
        return [(None, "continued"), *((case, arm) for case in cases for arm in ("free", "noise"))]

    def keys(self, case: Case | None, arm: str) -> list[dict]:
        """What tells the rows apart: one a run."""
        return [self.retraining.called(case) | {"arm": arm, "statistics": "re-estimated"}]

    def prepared(self, case: Case | None, arm: str, level: float | None = None) -> "Starts":
        """A copy that has the truncation of the case; `level`: the ε where it is known, else that of `levels`."""
        if level is None and case is not None:
            level = self.levels[case.cut, case.strength]
        return dataclasses.replace(self, retraining=self.retraining.prepared(case, arm, level))

    def run(self, case: Case | None, arm: str) -> Iterator[tuple[dict, Evaluation]]:
        """(labels, test evaluation). Labels: those of `keys` and of `truncated_to`."""
        (key,), retraining = self.keys(case, arm), self.prepared(case, arm).retraining
        module, about = retraining.start(case, arm)
        yield key | about, evaluate(reestimated(module, retraining.mixed_training_images()), retraining.dataset)
