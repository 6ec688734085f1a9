# The public interface; __init__.py imports each of these when it is first asked for.
from .experiments.dataset import Dataset
from .experiments.datasets import load_dataset
from .experiments.evaluation import evaluate
from .experiments.networks import conv_kernels
from .experiments.sweep import sweep
from .experiments.training import train
from .experiments.truncations import truncation_sweep
from .experiments.weights import load_model
from .tensors.cuts import CUTS, Cut, factorize, norm_kept, relative_error, singular_values, truncate
from .tensors.decompositions import depthwise_separable, hosvd, separable, tensor_train
from .tensors.fits import cp, tensor_ring
from .tensors.network import avg_pool2d, conv2d, patches
from .tensors.spectra import entanglement_entropy

__all__ = [
    "CUTS", "Cut", "Dataset", "avg_pool2d", "conv2d", "conv_kernels", "cp", "depthwise_separable",
    "entanglement_entropy", "evaluate", "factorize", "hosvd", "load_dataset", "load_model", "norm_kept", "patches",
    "relative_error", "separable", "singular_values", "sweep", "tensor_ring", "tensor_train", "train", "truncate",
    "truncation_sweep",
]
