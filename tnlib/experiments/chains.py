"""Which layers of a network follow each other, so that a channel's factor can be undone in the next one.

A plain chain is one run of convolutions and linear layers. In a deep network runs of convolutions lie inside blocks, each going
into the next through its batch norm and a ReLU.
"""

import operator
from collections import Counter

import torch
from torch import fx, nn

from .calls import CALLS
from .convolution import ACTIVATIONS
from .replacements import not_replaceable
from .tracing import called, module_called, only_user

RELU = {what for what, (kind, _) in ACTIVATIONS.items() if kind == "relu"} | {torch.relu_, "relu_"}
# Functions and methods, by their names, that let a positive factor of a channel through, and leave channels where they are, whatever else
# they are given; of those that may not, see `_leaves_channels`.
LET_THROUGH = {"relu", "relu_", "leaky_relu", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "dropout", "dropout2d",
               "contiguous"}


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
                         "a channel's factor cannot be undone in the next layer")
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
    graph = traced(model)
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


def runs_in_blocks(model: nn.Module) -> list[tuple[list[nn.Conv2d], list[nn.BatchNorm2d]]]:
    """The runs of `gauges.within_blocks` in forward order: their convolutions, and the batch norms between them."""
    graph = traced(model)
    norms, following = normalized(model, graph), {}
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


def traced(model: nn.Module) -> fx.Graph:
    """The graph of a network's calls. Raises `ValueError` where `torch.fx` cannot trace it."""
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


def normalized(model: nn.Module, graph: fx.Graph) -> dict[nn.Conv2d, nn.BatchNorm2d]:
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
