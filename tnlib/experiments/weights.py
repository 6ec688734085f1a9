"""Trained weights: safetensors files, each with a JSON card, read only after their sha256 is checked."""

import glob
import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from ..tensors.checks import check_seed
from .dataset import as_argument
from .files import PUBLISHED, RUNS, atomic_path, sha256_of, write_json
from .networks import NETWORKS, network

FOLDERS = (PUBLISHED / "weights", RUNS / "weights")


def stem(model: str, dataset: str, seed: int) -> str:
    """The name of a weights file without its suffix; `dataset` is a name or the path of an .npz file, else `TypeError`."""
    if not isinstance(dataset, (str, Path)):
        raise TypeError(f"dataset must be a data set's name or the path of an .npz file, got {dataset!r}")
    return f"{model}-{data_name(dataset)}-s{seed}"


def data_name(dataset: str | Path) -> str:
    """The name of a data set, of which `dataset` is the name or the path of an .npz file."""
    return Path(dataset).name.removesuffix(".npz")


def as_stored(model: torch.nn.Module, half: bool) -> dict[str, torch.Tensor]:
    """The tensors of `model` as a file holds them: all as they are, or, with `half`, convolutions' kernels as float16."""
    return {name: (tensor.detach().half() if half and tensor.ndim == 4 else tensor.detach()).cpu().contiguous()
            for name, tensor in model.state_dict().items()}


def save_weights(model: torch.nn.Module, path, card: dict, half: bool = False) -> dict:
    """Write `model`'s weights (`as_stored`) to `path` and `card`, with the file's sha256 in it, beside it; return the card."""
    path, tensors = Path(path), as_stored(model, half)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
        card = card | {"file": path.name, "sha256": sha256_of(temporary)}
    write_json(path.with_suffix(".json"), card)
    return card


def digest(header: dict[str, str], tensors: dict[str, torch.Tensor]) -> str:
    """The sha256 that a safetensors file without a card holds in its header: of the rest of that, and of the tensors."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes())
    return found.hexdigest()


def save_sealed(path, header: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file without a card: `header` says what it is about, and has the `digest` beside it."""
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header | {"sha256": digest(header, tensors)})


def read_sealed(path, remedy: str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """(header, tensors) as `save_sealed` had them. Raises `ValueError` with a `remedy` where they are damaged."""
    try:
        with safe_open(path, "pt") as file:
            header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); {remedy}") from None
    if header.pop("sha256", None) != digest(header, tensors):
        raise ValueError(f"{path} cannot be read (its sha256 is another); {remedy}")
    return header, tensors


def find_weights(model: str, dataset: str, seed: int = 0) -> Path:
    """The weights file of a trained network: the published one, else your own below runs/.

    Raises `FileNotFoundError` that says how to train it, and `ValueError` for an unknown network or a seed that is no whole
    number.
    """
    network(model)
    check_seed(seed)
    for folder in FOLDERS:
        path = folder / f"{stem(model, dataset, seed)}.safetensors"
        if path.is_file():
            return path
    raise _no_weights(model, dataset, seed)


def _no_weights(model, dataset, seed):
    longer = tuple(f"{name}-" for name in NETWORKS if name.startswith(f"{model}-"))
    there = sorted({path.stem for folder in FOLDERS for path in folder.glob(f"{model}-*.safetensors") if not path.stem.startswith(longer)})
    return FileNotFoundError(f"no weights {stem(model, dataset, seed)}.safetensors in {' or '.join(map(str, FOLDERS))}, which have "
                             f"{', '.join(there) or f'none of {model}'}; train them with: tnlib train {model} {as_argument(dataset)} --seed {seed}")


def trained_seeds(model: str, dataset: str) -> list[int]:
    """The seeds of the published networks `model` on `dataset`, ascending; of your own where none is published.

    Raises `FileNotFoundError` that says how to train one.
    """
    prefix = stem(model, dataset, 0).removesuffix("0")
    for folder in FOLDERS:
        numbers = [path.stem.removeprefix(prefix) for path in folder.glob(f"{glob.escape(prefix)}*.safetensors")]
        if seeds := sorted(int(number) for number in numbers if number.isdigit()):
            return seeds
    raise _no_weights(model, dataset, 0)


def read_card(path) -> dict:
    """The JSON card beside a weights or results file. Raises `FileNotFoundError` or `ValueError` naming it."""
    card = Path(path).with_suffix(".json")
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} has no card: {card} is missing") from None
    except ValueError as error:
        raise ValueError(f"the card {card} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"the card {card} must hold a JSON object, got {type(content).__name__}")
    if "sha256" not in content:
        raise ValueError(f"the card {card} does not say the sha256 of its file: it was altered; restore it (git checkout), or "
                         "make both again")
    return content


def published_networks() -> list[dict]:
    """The cards of all published weights, sorted by file name."""
    return [read_card(path) for path in sorted((PUBLISHED / "weights").glob("*.safetensors"))]


def check_called(path, card: dict, model: str, dataset: str, seed: int) -> None:
    """Raise `ValueError` where a card is of another network than the one asked for, which may be called the same: vanilla on
    constant-x.npz, and vanilla-constant on x.npz."""
    asked = {"model": model, "dataset": data_name(dataset), "seed": seed}
    described = {name: card.get(name) for name in asked} | {"dataset": data_name(str(card.get("dataset")))}
    if described != asked:
        words = lambda of: "{model} on {dataset}, seed {seed}".format(**of)
        raise ValueError(f"{path} is not the network asked for ({words(asked)}): its card describes {words(described)}; it was "
                         "renamed or copied, or two networks have one name")


def check_trained_on(dataset, card: dict) -> None:
    """Raise `ValueError` where a card's network was trained on other images than those of `dataset`, a `Dataset` as it is
    trained on: all that goes by a data set's name is about the images that once had it."""
    if card.get("core_fingerprint") != dataset.core_fingerprint:
        raise ValueError(f"{dataset!r} is not the data set that {card['file'].rpartition('.')[0]} was trained on (its core fingerprint is "
                         f"{dataset.core_fingerprint[:16]}…, that of the card is {str(card.get('core_fingerprint'))[:16]}…): give it "
                         f"another name, or remove {card['file']} and its card, and train again")


def initial_model(card: dict) -> torch.nn.Module:
    """The network of a weights card as its training began, but for what its normalisation takes from the data set.

    Its weights follow from the seed alone.
    """
    with torch.random.fork_rng():
        torch.manual_seed(card["seed"])
        return _built(card)


def _built(card: dict) -> torch.nn.Module:
    """On the CPU and in float32, whatever torch's defaults are."""
    with torch.device("cpu"):
        return network(card["model"]).build(**card["architecture"]).float()


class _NothingDrawn(TorchFunctionMode):
    """Within it, weights that would be drawn stay as memory has them: for a network whose every tensor is read from a file."""

    DRAWS = {torch.nn.init.uniform_, torch.nn.init.normal_, torch.nn.init.kaiming_uniform_, torch.Tensor.uniform_, torch.Tensor.normal_}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = kwargs or {}
        return (args[0] if args else given["tensor"]) if function in self.DRAWS else function(*args, **given)


def load_model(name: str, dataset: str, seed: int = 0) -> torch.nn.Module:
    """A trained network in eval mode, on the CPU: `name` on `dataset` ("cifar10", "cifar100", "shapes", or the path of an
    .npz file), `seed`.

    Published weights come first, then your own below runs/. Of an .npz only the name of the file counts here; on its images
    networks are measured by what checks them. Raises `FileNotFoundError` where there are none,
    `ValueError` for an unknown network and where the file is not the one its card describes, and `TypeError` for a
    `dataset` that is neither a name nor a path.
    """
    return model_at(find_weights(name, dataset, seed), name, dataset, seed)


def model_at(path: Path, name: str, dataset: str, seed: int) -> torch.nn.Module:
    """The trained network whose weights are at `path`, as `load_model` gives and refuses it."""
    card = read_card(path)
    found = sha256_of(path)
    if found != card.get("sha256"):
        raise ValueError(f"{path} is corrupt or was altered: its sha256 is {found[:16]}…, its card says "
                         f"{str(card.get('sha256'))[:16]}…; restore it (git checkout) or train it again")
    check_called(path, card, name, dataset, seed)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
    try:
        with _NothingDrawn():
            model = _built(card)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not the network that its card describes: {error}") from None
    return model.eval()
