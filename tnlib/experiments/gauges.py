"""Gauges: rescalings of channels that leave a network's function as it is, and change its kernels.

Channel c of layer k times a, and layer k+1's weights on that channel divided by a: ReLU and average pooling let a
positive factor through, so the function is the same. A batch norm undoes any factor that it is given, and behind it the
channels are as free as those of a plain chain are, where they go into one layer alone. Spectra, entropies and relative
errors are not the same: a statement about them is one about a gauge.
"""

import copy
import operator
from collections import Counter

import torch
from torch import fx, nn

from .calls import CALLS
from .convolution import ACTIVATIONS
from .networks import conv_kernels
from .replacements import compared, dense, not_replaceable
from .tracing import called, module_called, only_user

RELU = {what for what, (kind, _) in ACTIVATIONS.items() if kind == "relu"} | {torch.relu_, "relu_"}
# Functions and methods, by their names, that let a positive factor of a channel through, and leave channels where they are, whatever else
# they are given; of those that may not, see `_leaves_channels`.
LET_THROUGH = {"relu", "relu_", "leaky_relu", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "dropout", "dropout2d",
               "contiguous"}
BALANCED, BALANCING_SWEEPS = 1e-9, 1000  # the largest change of a factor's logarithm in the last sweep over the layers, and at most so many


def gauges(model: nn.Module, seed: int = 0, spread: float = 1.0, in_blocks: bool = False) -> dict[str, nn.Module]:
    """Name → `model` in that gauge: "trained" (as it is), and those that there are for it.

    For a plain chain of layers "balanced" and "random" (see `random_gauge`), with batch norm "folded"; `in_blocks`, then
    also "folded, balanced" and "folded, random" of `within_blocks`, where there are any.
    """
    try:
        return {"trained": model, "balanced": balanced(model), "random": random_gauge(model, seed, spread)}
    except ValueError:
        pass
    found = {"trained": model}
    try:
        found["folded"] = folded(model)
        if in_blocks:
            found |= {f"folded, {name}": turned for name, turned in within_blocks(model, seed, spread).items()}
    except ValueError:
        pass
    return found


def factors_in_gauges(model: nn.Module, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    """Gauge → layer → the factors (OUT, IN, KH, KW) by which the entries of its kernel are multiplied there, zeros as well.

    The gauges are those of `gauges(model, seed)`.
    """
    ones = copy.deepcopy(model)
    for kernel in conv_kernels(ones).values():
        kernel.fill_(1)
    networks = gauges(ones, seed)
    if "balanced" in networks:  # the one whose factors hang on the weights
        networks["balanced"] = rescaled(ones, _balancing(chain(model)))
    as_they_are = not_replaceable(model, conv_kernels(model))  # whose weight cannot be written: no gauge changes them
    return {gauge: {layer: torch.ones_like(factor) if layer in as_they_are else factor for layer, factor in conv_kernels(network).items()}
            for gauge, network in networks.items()}


def folded(model: nn.Module) -> nn.Module:
    """The gauge in which a batch norm only shifts: its scale γ/√(σ² + ε) is in the OUT rows of the kernel before it.

    In eval mode the function is unchanged. Raises `ValueError` for a network in which no batch norm with statistics of
    its own follows a convolution alone, or that `torch.fx` cannot trace.
    """
    copied = copy.deepcopy(model)
    for conv, norm in _normalized(copied, _graph(copied)).items():
        with torch.no_grad():
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            conv.weight.copy_(conv.weight.double() * scale.view(-1, 1, 1, 1))
            if conv.bias is not None:
                conv.bias.copy_(conv.bias.double() * scale)
            norm.running_mean.copy_(norm.running_mean.double() * scale)
            norm.running_var.fill_(1 - norm.eps)
            norm.weight.fill_(1.0)
    return copied


def within_blocks(model: nn.Module, seed: int = 0, spread: float = 1.0) -> dict[str, nn.Module]:
    """Name → `model` with batch norms `folded` and its blocks "balanced" or "random": what `balanced` and `random_gauge` do
    in a plain chain is done in every run of convolutions in which each goes into the next, and nowhere else, through its
    batch norm and a ReLU. Factors of what goes two ways, such as what a shortcut leads around a block, stay.

    In eval mode the function is unchanged. Raises `ValueError` where there is no such run, and as `folded` does.
    """
    drawn = torch.Generator().manual_seed(seed)
    found = {}
    for name, choose in (("balanced", _balancing), ("random", lambda layers: _drawn(layers, drawn, spread))):
        found[name] = folded(model)
        for layers, norms in _runs(found[name]):
            _rescale(layers, choose(layers), norms)
    return found


def _runs(model: nn.Module) -> list[tuple[list[nn.Conv2d], list[nn.BatchNorm2d]]]:
    """The runs of `within_blocks` in forward order: their convolutions, and the batch norms between them."""
    graph = _graph(model)
    norms, following = _normalized(model, graph), {}
    for node in graph.nodes:
        if (conv := module_called(model, node)) not in norms:
            continue
        relu = only_user(only_user(node))  # or what else is behind the batch norm
        after = only_user(relu)
        if called(model, relu) not in RELU or not _called_once(graph, after):
            continue
        if isinstance(next_conv := module_called(model, after), nn.Conv2d) and next_conv.groups == 1 and not _refused(model, [next_conv]):
            following[conv] = next_conv
    runs = []
    for first in (conv for conv in following if conv not in following.values()):
        layers = [first]
        while layers[-1] in following:
            layers.append(following[layers[-1]])
        runs.append((layers, [norms[layer] for layer in layers[:-1]]))
    if not runs:
        raise ValueError(f"{type(model).__name__} has no convolution that goes into another through its batch norm and a ReLU alone")
    return runs


def _graph(model: nn.Module) -> fx.Graph:
    try:
        with CALLS.replaced():
            return fx.symbolic_trace(model).graph
    except Exception as error:  # whatever a module's forward raises when it is traced
        raise ValueError(f"{type(model).__name__} cannot be traced, so it is not known how its layers follow each other: {error}") from None


def _refused(model: nn.Module, layers: list[nn.Module]) -> dict[str, str]:
    """Those of `layers` whose weight cannot be written, with why: it is computed, or another module's as well."""
    return not_replaceable(model, [name for name, module in model.named_modules() if any(module is layer for layer in layers)])


def _called_once(graph: fx.Graph, node) -> bool:
    """Whether `node` is the only call of a module."""
    return isinstance(node, fx.Node) and node.op == "call_module" and sum(other.target == node.target for other in graph.nodes) == 1


def _normalized(model: nn.Module, graph: fx.Graph) -> dict[nn.Conv2d, nn.BatchNorm2d]:
    """The convolutions whose output goes into a batch norm and nowhere else, each with it; both are used once."""
    found = {}
    for node in graph.nodes:
        if not _called_once(graph, node):
            continue
        norm, source = module_called(model, node), node.args[0] if node.args else None
        if type(norm) is not nn.BatchNorm2d or norm.running_var is None or not norm.affine or not _called_once(graph, source):
            continue
        conv = module_called(model, source)
        if isinstance(conv, nn.Conv2d) and len(source.users) == 1 and not _refused(model, [conv]):
            found[conv] = norm
    if not found:
        raise ValueError(f"{type(model).__name__} has no convolution that a batch norm follows")
    return found


def chain(model: nn.Module) -> list[nn.Module]:
    """The convolutions and linear layers of a plain chain in forward order.

    Raises `ValueError` for a network where a channel's factor cannot be undone in the next layer: norm layers, other
    layers with weights, activations other than ReLU, groups, layers whose channels do not follow each other, or a path
    that branches (a residual); functions behind the first layer that may mix channels, hooks, and weights that are shared or
    computed; and for one that `torch.fx` cannot trace.
    """
    layers = _in_a_row(model)
    plain = len(layers) > 1 and all(map(_lets_a_factor_through, set(model.modules()) - set(layers))) and not _refused(model, layers)
    for layer, following in zip(layers, layers[1:]):
        columns, rest = divmod(following.weight.shape[1], layer.weight.shape[0])  # several columns after flattening
        plain &= rest == 0 and (columns == 1 or isinstance(following, nn.Linear)) and getattr(layer, "groups", 1) == 1
    if not plain:
        raise ValueError(f"{type(model).__name__} is not a plain chain of convolutions and linear layers: "
                         "the gauges of this module do not apply to it")
    return layers


def channel_weights(model: nn.Module) -> dict[str, int]:
    """Convolution → how many weights go with one of its output channels: its filter, and those by which the next layer reads it.

    Raises `ValueError` for what is no plain `chain`, where a channel is not read by one layer alone.
    """
    names, layers = {module: name for name, module in model.named_modules()}, chain(model)
    return {names[layer]: layer.weight[0].numel() + following.weight.numel() // len(layer.weight)
            for layer, following in zip(layers, layers[1:]) if isinstance(layer, nn.Conv2d)}


def _in_a_row(model: nn.Module) -> list[nn.Module]:
    """All convolutions and linear layers, in the order in which they are called; none where they are not called one after
    another, each once: where a value goes two ways."""
    graph = _graph(model)
    about_shape = lambda node: node.op == "call_method" and node.target in ("size", "dim") or node.target in (getattr, operator.getitem)
    nodes = [node for node in graph.nodes if node.op != "get_attr" and not about_shape(node)]
    for before, node in zip(nodes, nodes[1:]):
        if [source for source in node.all_input_nodes if source in nodes] != [before]:
            return []
    called = [model.get_submodule(node.target) for node in nodes if node.op == "call_module"]
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return []
    is_layer = [node.op == "call_module" and isinstance(model.get_submodule(node.target), (nn.Conv2d, nn.Linear)) for node in nodes]
    behind = nodes[is_layer.index(True):] if any(is_layer) else []
    if any(node.op in ("call_function", "call_method") and not _leaves_channels(node) for node in behind):
        return []
    layers = [module for module in called if isinstance(module, (nn.Conv2d, nn.Linear))]
    there = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return layers if Counter(map(id, layers)) == Counter(map(id, there)) else []


def _leaves_channels(node: fx.Node) -> bool:
    """Whether a function or method lets a positive factor of a channel through, and leaves the channels on their axis or, each in one
    piece, on that of what was flattened."""
    name, rest = getattr(node.target, "__name__", node.target), node.args[1:]
    axes = lambda *names: next((node.kwargs[key] for key in names if key in node.kwargs), rest[0] if rest else None)
    if name == "flatten":
        return axes("start_dim") in (1, 2)
    if name == "mean":
        over = axes("dim", "axis")
        over = set(over) if isinstance(over, (list, tuple)) else {over}
        return over <= {2, 3} or over == {-2, -1}
    if name in ("view", "reshape"):
        sizes = rest[0] if rest and isinstance(rest[0], (list, tuple)) else rest
        return len(sizes) == 2 and -1 in sizes  # (N, what an image has)
    return name in LET_THROUGH


def _lets_a_factor_through(module: nn.Module) -> bool:
    if isinstance(module, nn.Flatten) and module.start_dim not in (1, 2) or isinstance(module, nn.Unflatten):
        return False
    kind = type(module).__module__.rpartition(".")[2]  # torch.nn keeps activations and norms in modules of their own
    return (not list(module.parameters(recurse=False)) and kind not in ("batchnorm", "instancenorm", "normalization", "channelshuffle")
            and not (isinstance(module, nn.ConstantPad2d) and module.value) and (kind != "activation" or isinstance(module, (nn.ReLU, nn.LeakyReLU))))


def rescaled(model: nn.Module, factors: list[torch.Tensor]) -> nn.Module:
    """A copy of `model` with hidden channel c of layer k times factors[k][c] > 0; the function is unchanged.

    `factors`: one tensor (OUT,) a layer of `chain(model)` but the last, whose outputs are the logits. Raises
    `ValueError` for factors of other lengths or that are not positive.
    """
    copied = copy.deepcopy(model)
    layers = chain(copied)
    if [len(factor) for factor in factors] != [layer.weight.shape[0] for layer in layers[:-1]]:
        raise ValueError(f"factors must hold one tensor for each hidden layer, of lengths "
                         f"{[layer.weight.shape[0] for layer in layers[:-1]]}, got {[len(f) for f in factors]}")
    if not all((factor > 0).all() and torch.isfinite(factor).all() for factor in factors):
        raise ValueError("factors must be positive and finite: ReLU lets no other factor through")
    _rescale(layers, factors)
    return copied


@torch.no_grad()
def _rescale(layers: list[nn.Module], factors: list[torch.Tensor], norms=()) -> None:
    """Channel c of layer k times factors[k][c], and what the next layer reads of it divided by that. `norms`: what stands
    behind each layer but the last, batch norms that only shift."""
    for k, (layer, following, factor) in enumerate(zip(layers, layers[1:], factors)):
        factor = factor.to(layer.weight)
        layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
        for shift in (layer.bias, *((norms[k].running_mean, norms[k].bias) if norms else ())):
            if shift is not None:
                shift.mul_(factor)
        _by_channel(following, len(factor)).div_(factor.view(1, -1, 1))


def balanced(model: nn.Module) -> nn.Module:
    """The balanced gauge: every hidden channel's incoming and outgoing weights have the same norm.

    Found by balancing layer after layer until nothing moves; it is where the sum of squared weights is least among
    all gauges. A channel with no weights on one side keeps its factor.
    """
    return rescaled(model, _balancing(chain(model)))


def _balancing(modules: list[nn.Module]) -> list[torch.Tensor]:
    """The factors of `balanced` for layers that follow each other."""
    layers = [layer.weight.detach().double() for layer in modules]
    incoming = [weight.flatten(1).square() for weight in layers]                                 # [OUT, …]
    factors = [torch.ones(len(weight), dtype=torch.float64, device=weight.device) for weight in layers[:-1]]
    # Squared norms of the blocks between channel i of one layer and channel j of the next: all that balancing needs.
    blocks = [incoming[0].sum(1, keepdim=True)]
    blocks += [w.square().reshape(len(w), len(before), -1).sum(2) for before, w in zip(layers, layers[1:])]
    for _ in range(BALANCING_SWEEPS):
        moved = 0.0
        for k, factor in enumerate(factors):
            before = factors[k - 1] if k else torch.ones(1, dtype=torch.float64, device=factor.device)
            after = factors[k + 1] if k + 1 < len(factors) else torch.ones(
                len(layers[k + 1]), dtype=torch.float64, device=factor.device)
            coming = (blocks[k] / before.square()).sum(1)                                        # at factor 1
            going = (blocks[k + 1] * after.square()[:, None]).sum(0)
            new = torch.where((coming > 0) & (going > 0), (going / coming).pow(0.25), factor)
            moved = max(moved, (new / factor).log().abs().max().item())
            factors[k] = new
        if moved < BALANCED:
            break
    return factors


def random_gauge(model: nn.Module, seed: int, spread: float = 1.0) -> nn.Module:
    """A random gauge: factors exp(spread · g), g a standard Gaussian for each hidden channel."""
    return rescaled(model, _drawn(chain(model), torch.Generator().manual_seed(seed), spread))


def _drawn(layers: list[nn.Module], generator: torch.Generator, spread: float) -> list[torch.Tensor]:
    """The factors of `random_gauge` for layers that follow each other."""
    return [torch.exp(spread * torch.randn(layer.weight.shape[0], generator=generator, dtype=torch.float64)) for layer in layers[:-1]]


def gauged_errors(model: nn.Module, truncations, seed: int = 0) -> list[dict]:
    """What the same truncations lose of the norm in each gauge: rows with their labels, `gauge` and two numbers.

    `truncations`: (labels, {layer: kernel or factors}) of `model`, one layer each. The truncated network is rescaled like the
    whole one, so that its function and its accuracy stay as they are; `norm_kept` and `relative_error` do not. The
    gauges are those of `gauges`.
    """
    own, factors, rows = conv_kernels(model), factors_in_gauges(model, seed), []
    for labels, kernels in truncations:
        for layer, truncated in kernels.items():
            truncated = dense(truncated)
            rows += [labels | {"gauge": gauge} | compared(of[layer] * own[layer], of[layer] * truncated) for gauge, of in factors.items()]
    return rows


def _by_channel(layer: nn.Module, channels: int) -> torch.Tensor:
    """A view (OUT, channels, rest) of a layer's weight: a linear layer after flattening has several columns each."""
    return layer.weight.view(layer.weight.shape[0], channels, -1)
