"""A network that can be cut below any layers: what comes before them, and what a change of them reaches."""

from dataclasses import dataclass

import torch
from torch import fx, nn

from ..tensors.factors import KernelFactors
from .evaluation import alike
from .growing import Growing, can_grow, few_terms
from .replacements import dense
from .tracing import WHOLE, fused


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


class NetworkGraph:
    """A network by its graph from `traced`, with fused convolutions; `probe`: some images, to measure how large its values are."""

    def __init__(self, graph: fx.GraphModule, probe: torch.Tensor):
        self.graph = graph
        expected = _Sizes(graph).run(probe)  # notes the shapes
        self.convolutions = fused(graph)
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
        return self.graph.get_parameter(f"{self.inside}{_weight_of(name)}")

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


def _weight_of(layer: str) -> str:
    """The name of a layer's weight; a model that is a convolution itself has a layer called ''."""
    return f"{layer}.weight" if layer else "weight"


def _uses(node, layer: str) -> bool:
    """Whether a node reads the kernel of `layer`: it calls it, or a module that contains it, or takes its weight."""
    if node.op == "get_attr":
        return node.target == _weight_of(layer)
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
