"""Words that pages share: names of data sets and networks, lists, numbers with a sign."""

import re

from .claims import least_accuracy
from .results import results


def listed(words) -> str:
    """"a, b and c"; of nothing, nothing."""
    *others, last = list(map(str, words)) or [""]
    return f"{', '.join(others)} and {last}" if others else last


def several(number: int, one: str = "one network", many: str = "{} networks") -> str:
    """`one` for 1, else `many` with the number."""
    return one if number == 1 else many.format(number)


def signed(number: float, form: str = "{:+.1f}") -> str:
    """A number in the format `form`, with a minus sign of print, and what rounds to 0 without any sign."""
    text = form.format(number)
    return (text if float(text) else form.format(0).lstrip("+")).replace("-", "−")


def about_networks(model: str, dataset: str, seeds=None) -> str:
    """What a caption says of the networks `model` on `dataset` (those of `seeds`; None: all): "first layer of stride 2, 10 epochs,
    83.6 % right, n = 1, reduced". Reduced are networks of which one is less accurate than a verdict takes."""
    found = results("networks", model, dataset)
    found = found[found["seed"].isin(found["seed"] if seeds is None else list(seeds))]
    stems = [f"first layer of stride {stem.removeprefix('s')}" for stem in found["stem"].dropna().unique()]
    recipes = results("recipe", model, dataset)
    epochs = [f"{epochs} epochs" for epochs in recipes[recipes["seed"].isin(found["seed"])]["epochs"].unique()]
    reduced = ["reduced"] * bool(found["test_accuracy"].min() < least_accuracy(model, dataset))
    return ", ".join([*stems, *epochs, f"{100 * found['test_accuracy'].mean():.1f} % right", f"n = {len(found)}", *reduced])


def stand_in(shown: str, model: str) -> str:
    """What a section on a second network says where there is none, and the page's own `model` is shown again; else nothing."""
    return (f"There is no other network here than {shown}: this section shows it again, and what its text concludes is of the "
            "network of the published book.") if shown == model else ""


def titles(*datasets: str) -> dict[str, str]:
    """Name → what a page calls a data set, each once, in their order."""
    return {name: re.sub(r"^cifar(?=\d+$)", "CIFAR-", name.split("/")[-1]) for name in datasets}
