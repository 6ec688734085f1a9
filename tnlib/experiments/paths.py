"""The straight path between the weights that two runs of a re-training ended in, along which there may be a barrier."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .batch_norm import augmentation, batch_norms, reestimated
from .evaluation import Evaluation, evaluate
from .experiment import Runs
from .retraining import STATISTICS, Retraining
from .strengths import Case

POSITIONS = 11  # on a path, its ends among them


@dataclass
class Paths(Runs):
    """Loss and accuracy on the straight line between the weights that two runs of `.retraining` ended in.

    Those of each case's "free" run and of the "reordered" one, each from the "continued" run.
    """

    retraining: Retraining

    def parameters(self) -> dict:
        """Those of the runs that the paths lie between, and how training images were augmented for batch norm."""
        retraining = self.retraining
        return retraining.parameters() | (augmentation(retraining.recipe) if batch_norms(retraining.model) else {})

    def runs(self) -> list[tuple[Case | None, str]]:
        return [(None, "reordered"), *((case, "free") for case in self.retraining.cases)]

    def keys(self, case: Case | None, arm: str) -> list[dict]:
        """What tells the rows of a path apart: `position` 0 is the "continued" run's end, 1 that of `arm`."""
        return [self.retraining.called(case) | {"arm": arm, "position": k / (POSITIONS - 1)} for k in range(POSITIONS)]

    def run(self, case: Case | None, arm: str) -> Iterator[tuple[dict, Evaluation]]:
        """(labels, test evaluation) along a path. Labels: those of `keys`, and `distance` between its ends over the norm
        of the "continued" run's weights, `train_loss` and `train_accuracy` as in a run. The statistics of batch norm
        are those of the training images at every point: those of the ends are wrong between them."""
        start, end = (self._weights(*run) for run in ((None, "continued"), (case, arm)))
        norm = lambda weights: sum(tensor.double().square().sum() for tensor in weights.values()).sqrt().item()
        distance = norm({name: end[name] - tensor for name, tensor in start.items()}) / norm(start)
        module, some = copy.deepcopy(self.retraining.model), self.retraining.some_training_images
        pixels = self.retraining.mixed_training_images() if batch_norms(module) else None
        for key in self.keys(case, arm):
            weights = {name: torch.lerp(tensor, end[name], key["position"]) for name, tensor in start.items()}
            module.load_state_dict(module.state_dict() | weights)
            network = module if pixels is None else reestimated(module, pixels)
            seen = evaluate(network, some)
            yield (key | {"distance": distance, "train_loss": seen.loss, "train_accuracy": seen.accuracy},
                   evaluate(network, self.retraining.dataset))

    def _weights(self, case, arm):
        return {name: tensor for name, tensor in self.retraining.read_last_weights(case, arm).items()
                if name.rpartition(".")[2] not in STATISTICS}
