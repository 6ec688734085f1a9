"""A network as a graph that can be cut below any layers: what comes before them, and what a change of them reaches.

The graph is torch.fx's. In it every convolution with the batch norm and the activation that follow it is one operation,
into which another kernel can be put; and nothing is written in place, so that a value can be used again.
"""

import copy
import operator
import threading
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import fx, nn

from ..tensors.factors import KernelFactors
from .convolution import ACTIVATIONS, Convolution
from .growing import Growing, can_grow, few_terms
from .replacements import dense
from .winograd import Scratch

ADDITIONS = (operator.add, torch.add, "add")
OUT_OF_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
                operator.itruediv: operator.truediv}
PROBE_TOLERANCE = 1e-3  # of the largest logit, far above rounding in float32; of coarser numbers 16 of their steps


# ---- from a model to a graph -------------------------------------------------------------------------------------

class _Calls:
    """While a thread traces, torch takes the calls of modules in all threads of the process for part of it. So one traces
    when no other evaluates: `.replaced()` around the one, `.as_they_are()` around the other."""

    def __init__(self):
        self._changed, self._evaluating, self._tracing = threading.Condition(), 0, 0

    @contextmanager
    def replaced(self):
        with self._changed:
            self._tracing += 1  # from now on nobody begins to evaluate
            self._changed.wait_for(lambda: not self._evaluating)
            try:
                yield
            finally:
                self._tracing -= 1
                self._changed.notify_all()

    @contextmanager
    def as_they_are(self):
        with self._changed:
            self._changed.wait_for(lambda: not self._tracing)
            self._evaluating += 1
        try:
            yield
        finally:
            with self._changed:
                self._evaluating -= 1
                self._changed.notify_all()


CALLS = _Calls()

WRITES = "writes"  # marks a node that wrote into its first argument
WHOLE = "_whole"  # the one node of a model that cannot be traced


def traced(model: nn.Module, probe: torch.Tensor) -> fx.GraphModule:
    """`model` in eval mode as a graph without in-place operations; `model` itself is left as it is.

    A model that cannot be traced, or whose graph answers otherwise than itself on the images `probe`, is one node, and
    a warning says so.
    """
    try:
        copied = copy.deepcopy(model).eval()
    except Exception as error:  # of what a module may hold: a lock, a file that is open
        raise ValueError(f"{type(model).__name__} cannot be copied, and so not be swept: {error}") from None
    with CALLS.as_they_are():
        expected = copied(probe)
    try:
        with CALLS.replaced():
            graph = _functional(fx.symbolic_trace(copied))
        with CALLS.as_they_are():
            found = _Unwritten(graph).run(probe)
        if alike(found, expected):
            return graph
        reason = "its traced graph gives other logits"
    except Exception as error:  # tracing runs the model's own code on stand-ins, which raises whatever that code raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    warnings.warn(f"{type(model).__name__} cannot be traced and is run whole for every cell ({reason})", stacklevel=3)
    graph = fx.Graph()
    graph.output(graph.call_module(WHOLE, (graph.placeholder("image"),)))
    return fx.GraphModule(nn.ModuleDict({WHOLE: copied}), graph)


def alike(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether logits are the expected ones, up to rounding; two that are NaN, or the same infinity, are alike."""
    tolerance = max(PROBE_TOLERANCE, 16 * torch.finfo(expected.dtype).eps) * expected.abs().nan_to_num(posinf=0.0).max().item()
    return torch.allclose(logits, expected, rtol=0, atol=tolerance, equal_nan=True)


def _functional(graph: fx.GraphModule) -> fx.GraphModule:
    """Every operation that writes into its first argument gives a new value instead, which all later users take."""
    nodes = list(graph.graph.nodes)
    writing = [module for module in graph.modules() if getattr(module, "inplace", False)]  # one may be called several times
    for module in writing:
        module.inplace = False
    for place, node in enumerate(nodes):
        name = getattr(node.target, "__name__", str(node.target))
        if node.op == "call_module" and any(graph.get_submodule(node.target) is module for module in writing):
            pass
        elif node.kwargs.get("inplace"):
            node.kwargs = node.kwargs | {"inplace": False}
        elif node.target in OUT_OF_PLACE:
            node.target = OUT_OF_PLACE[node.target]
        elif node.op == "call_method" and name.endswith("_") and not name.endswith("__"):
            node.target = name.removesuffix("_")
        elif node.op == "call_function" and name.endswith("_") and not name.endswith("__"):
            node.target = getattr(torch, name.removesuffix("_"))
        else:
            continue
        written = node.args[0]
        node.meta[WRITES] = True
        for later in nodes[place + 1:]:
            later.replace_input_with(written, node)
    graph.recompile()
    return graph


class _Unwritten(fx.Interpreter):
    """Runs a graph and stops at a node that writes into a value which another may read, also through a view of it: or would
    have written before it gave a new value instead, which the others then do not see."""

    def run_node(self, node):
        values = [self.env[source] for source in node.all_input_nodes]
        if node.meta.get(WRITES):
            written, ended = node.args[0], self.user_to_last_uses.get(node, ())
            memory = lambda value: value.untyped_storage().data_ptr() if isinstance(value, torch.Tensor) else None
            if any(memory(value) == memory(self.env[written]) for source, value in self.env.items() if source is not written and source not in ended):
                raise NotImplementedError(f"{node.name} writes into memory that another value has, too")
        versions = [value._version for value in values if isinstance(value, torch.Tensor)]
        result = super().run_node(node)
        if versions != [value._version for value in values if isinstance(value, torch.Tensor)]:
            raise NotImplementedError(f"{node.name} writes in place")
        return result


def _fused(graph: fx.GraphModule) -> dict[str, Convolution]:
    """Make every convolution with what follows it one node, in place; return them by the layer's name."""
    convolutions, scratch = {}, Scratch()
    calls = Counter(node.target.removesuffix(".weight") for node in graph.graph.nodes
                    if node.op in ("call_module", "get_attr"))
    for node in list(graph.graph.nodes):
        module = _module(graph, node)
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        if not plain or node.kwargs or calls[node.target] > 1:
            continue
        chain, norm, other, activation = [node], None, (), ("none", ())
        follower = _module(graph, _only_user(node))
        if type(follower) is nn.BatchNorm2d and follower.running_var is not None:
            norm = follower
            chain.append(_only_user(node))
        user = _only_user(chain[-1])
        if _called(graph, user) in ADDITIONS and not user.kwargs and len(
                {source.meta["form"] for source in user.all_input_nodes}) == 1 < len(user.all_input_nodes):
            other = tuple(value for value in user.args if value is not chain[-1])
            chain.append(user)
        if (called := _called(graph, _only_user(chain[-1]))) in ACTIVATIONS:
            activation = ACTIVATIONS[called]
            chain.append(_only_user(chain[-1]))
        convolutions[node.target] = Convolution(module, norm, activation, scratch)
        graph.set_submodule(node.target, convolutions[node.target])
        with graph.graph.inserting_before(chain[-1]):  # not where it was: what is added may come later
            fused = graph.graph.call_module(node.target, (*node.args, *other))
        fused.meta["form"] = chain[-1].meta["form"]
        chain[-1].replace_all_uses_with(fused)
        for done in reversed(chain):
            graph.graph.erase_node(done)
    graph.recompile()
    return convolutions


def _module(graph, node):
    """The module that a node calls; None for other nodes, and for one with hooks, which nothing else must replace."""
    module = graph.get_submodule(node.target) if node is not None and node.op == "call_module" else None
    return None if module is None or module._forward_hooks or module._forward_pre_hooks else module


def _only_user(node):
    return next(iter(node.users)) if len(node.users) == 1 else None


def _called(graph, node):
    """What a node calls: the class of a module without hooks, a function, or the name of a method; else None."""
    if node is None or node.op not in ("call_module", "call_function", "call_method"):
        return None
    if node.op != "call_module":
        return node.target
    module = _module(graph, node)
    return None if module is None else type(module)


# ---- cutting the graph -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Split:
    """A network cut in two. `.before(image)`: a tuple of all values that `.after(*values)` needs for the logits.

    `.kept_bytes`: of those values; `.peak_bytes`: most that `.before` or `.after` hold at once; both for one image.
    Values are freed after their last use.
    """

    before: fx.GraphModule
    after: fx.GraphModule
    kept_bytes: int
    peak_bytes: int


class Network:
    """A graph from `traced` with fused convolutions; `probe`: some images, to measure how large its values are."""

    def __init__(self, graph: fx.GraphModule, probe: torch.Tensor):
        self.graph = graph
        expected = _Sizes(graph).run(probe)  # notes the shapes
        self.convolutions = _fused(graph)
        self.inside = f"{WHOLE}." if hasattr(graph, WHOLE) else ""
        self._originals = {}  # of replaced layers that could not be fused: the weights that they had
        self._replaced = frozenset()  # layers that were fused
        self._splits = {}
        sizes = _Sizes(graph)
        if not alike(sizes.run(probe), expected):
            raise RuntimeError("the network with fused convolutions answers otherwise than without: an error in tnlib")
        for convolution in self.convolutions.values():
            convolution.put(None)  # to be laid out for whole batches, not for the probe
        self._bytes = {node: size / len(probe) for node, size in sizes.bytes.items()}

    def put(self, kernels: dict[str, torch.Tensor | KernelFactors]) -> None:
        """Use these kernels in place of the layers' own, and the layers' own in all others."""
        for name in self._originals.keys() - kernels.keys():
            self._weight(name).data = self._originals.pop(name)
        for name in self._replaced - kernels.keys():
            self.convolutions[name].put(None)
        self._replaced = kernels.keys() & self.convolutions.keys()
        for name, kernel in kernels.items():
            layer = self.convolutions.get(name)
            if layer is None and not self.reached([name]):
                continue  # never called in eval mode, such as a head for training alone
            if layer is None:
                self._originals.setdefault(name, self._weight(name).data)
                self._weight(name).data = dense(kernel).to(self._weight(name).device)
            elif can_grow(layer, kernel) and few_terms(kernel):
                layer.growing = Growing(layer, [kernel])
            else:
                layer.put(dense(kernel))

    def grow(self, run: list[dict]) -> bool:
        """Use the kernels of one of the `runs` of cells, one with each call of the network; or False, and do nothing."""
        (name, kernel), *others = run[0].items() or [(None, None)]
        layer = self.convolutions.get(name)
        if others or layer is None or not can_grow(layer, kernel):
            return False
        self.put({})
        self._replaced, layer.growing = {name}, Growing(layer, [cell[name] for cell in run])
        return True

    def _weight(self, name) -> nn.Parameter:
        return self.graph.get_parameter(f"{self.inside}{name}.weight")

    def reached(self, layers) -> frozenset[fx.Node]:
        """The nodes whose values depend on the kernels of `layers`."""
        reached = set()
        for node in self.graph.graph.nodes:
            if any(_uses(node, layer) for layer in layers) or reached.intersection(node.all_input_nodes):
                reached.add(node)
        return frozenset(reached)

    def split(self, reached: frozenset[fx.Node]) -> Split:
        """Cut between the nodes of `reached` and all others."""
        if reached not in self._splits:
            self._splits = {reached: self._split(reached)}
        return self._splits[reached]

    def _split(self, reached) -> Split:
        nodes = list(self.graph.graph.nodes)
        logits = nodes[-1].args[0]
        kept = [node for node in nodes if node not in reached and node.op != "get_attr"
                and (reached.intersection(node.users) or node is logits)]
        before, after = fx.Graph(), fx.Graph()
        copies = {}
        for node in nodes[:-1]:
            if node not in reached:
                copies[node] = before.node_copy(node, copies.__getitem__)
        before.output(tuple(copies[node] for node in kept))
        copies = {node: after.placeholder(node.name) for node in kept}
        for node in nodes[:-1]:
            if node in reached or node.op == "get_attr":
                copies[node] = after.node_copy(node, copies.__getitem__)
        after.output(copies[logits])
        return Split(*(self._pruned(part) for part in (before, after)),
                     int(sum(self._bytes[node] for node in kept)), int(self._peak(nodes)))

    def _pruned(self, part: fx.Graph) -> fx.GraphModule:
        """A part of the graph without the nodes that its output does not need; the modules are this network's."""
        module = fx.GraphModule(self.graph, part)
        module.graph.eliminate_dead_code()
        module.recompile()
        return module

    def _peak(self, nodes) -> float:
        """Bytes for one image alive at once while `nodes` run in this order."""
        last = {source: node for node in nodes for source in node.all_input_nodes}
        alive, peak = 0.0, 0.0
        for node in nodes[:-1]:
            alive += self._bytes[node]
            peak = max(peak, alive)
            alive -= sum(self._bytes[source] for source in node.all_input_nodes if last[source] is node)
        return peak


def _uses(node, layer: str) -> bool:
    """Whether a node reads the kernel of `layer`: it calls it, or a module that contains it, or takes its weight."""
    if node.op == "get_attr":
        return node.target == f"{layer}.weight"
    return node.op == "call_module" and (node.target == WHOLE or f"{layer}.".startswith(f"{node.target}."))


class _Sizes(fx.Interpreter):
    """Runs a graph and notes every value's shape, in its node, and bytes."""

    def __init__(self, graph):
        super().__init__(graph)
        self.bytes = {}

    def run_node(self, node):
        value = super().run_node(node)
        node.meta["form"] = getattr(value, "shape", None), getattr(value, "dtype", None)
        constant = node.op == "get_attr" or not isinstance(value, torch.Tensor)
        self.bytes[node] = 0 if constant else value.numel() * value.element_size()
        return value
