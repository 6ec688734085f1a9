"""A model as a graph of torch.fx in which every convolution, with the batch norm and the activation that follow it, is
one operation into which another kernel can be put; and nothing is written in place, so that a value can be used again."""

import copy
import operator
import warnings
from collections import Counter

import torch
from torch import fx, nn

from .calls import CALLS
from .convolution import ACTIVATIONS, Convolution
from .evaluation import alike
from .winograd import Scratch

ADDITIONS = (operator.add, torch.add, "add")
OUT_OF_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
                operator.itruediv: operator.truediv}


WRITES = "writes"  # marks a node that wrote into its first argument
WHOLE = "_whole"  # the one node of a model that cannot be traced


def traced(model: nn.Module, probe: torch.Tensor) -> fx.GraphModule:
    """`model` in eval mode as a graph without in-place operations; `model` itself is left as it is.

    A model that cannot be traced, or whose graph answers otherwise than itself on the images `probe`, with its own kernels or
    with others, is one node, and a warning says so.
    """
    try:
        copied = copy.deepcopy(model).eval()
    except Exception as error:  # of what a module may hold: a lock, a file that is open
        raise ValueError(f"{type(model).__name__} cannot be copied, and so not be swept: {error}") from error
    with CALLS.as_they_are():
        expected = copied(probe)
    try:
        if copied._forward_hooks or copied._forward_pre_hooks or "forward" in vars(copied) or type(copied).__call__ is not nn.Module.__call__:
            raise NotImplementedError("it has hooks, or a way of its own to be called")
        with CALLS.replaced():
            graph = _functional(fx.symbolic_trace(copied))
        with CALLS.as_they_are():
            found = _Unwritten(graph).run(probe)
            same = alike(found, expected) and _follows_its_kernels(graph, copied, copy.deepcopy(model).eval(), probe)
        if same:
            return graph
        reason = "its traced graph gives other logits, or does so with other kernels"
    except Exception as error:  # tracing runs the model's own code on stand-ins, which raises whatever that code raises
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    warnings.warn(f"{type(model).__name__} cannot be traced and is run whole for every cell ({reason})", stacklevel=3)
    graph = fx.Graph()
    graph.output(graph.call_module(WHOLE, (graph.placeholder("image"),)))
    return fx.GraphModule(nn.ModuleDict({WHOLE: copied}), graph)


def _follows_its_kernels(graph: fx.GraphModule, traced_model: nn.Module, model: nn.Module, probe: torch.Tensor) -> bool:
    """Whether a graph answers as the model also with other kernels in both: what a model reads of a weight in its own way is a
    constant of the graph. `traced_model`: the one whose modules the graph has; `model`: a copy, whose kernels are left changed."""
    pairs = [(own, other, own.data) for own, other in zip(_kernels(traced_model), _kernels(model), strict=True)]
    generator = torch.Generator().manual_seed(0)
    try:
        for spread in (0.3, 3.0):  # what depends on how large a weight is shows with the second
            for own, other, kernel in pairs:
                factors = 1 + spread * torch.randn(kernel.shape, generator=generator)
                own.data = other.data = kernel * factors.to(kernel)
            if not alike(_Unwritten(graph).run(probe), model(probe)):
                return False
        return True
    finally:
        for own, _, kernel in pairs:
            own.data = kernel


def _kernels(model: nn.Module) -> list[nn.Parameter]:
    return list(dict.fromkeys(module.weight for module in model.modules()
                              if isinstance(module, nn.Conv2d) and isinstance(module._parameters.get("weight"), nn.Parameter)))


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


def fused(graph: fx.GraphModule) -> dict[str, Convolution]:
    """Make every convolution with what follows it one node, in place; return them by the layer's name."""
    convolutions, scratch = {}, Scratch()
    calls = Counter(node.target.removesuffix(".weight").removesuffix(".bias") for node in graph.graph.nodes
                    if node.op in ("call_module", "get_attr"))
    for node in list(graph.graph.nodes):
        module = module_called(graph, node)
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        if not plain or node.kwargs or calls[node.target] > 1:
            continue
        chain, norm, other, activation = [node], None, (), ("none", ())
        follower = module_called(graph, only_user(node))
        if type(follower) is nn.BatchNorm2d and follower.running_var is not None:
            norm = follower
            chain.append(only_user(node))
        user = only_user(chain[-1])
        if called(graph, user) in ADDITIONS and not user.kwargs and len(
                {source.meta["form"] for source in user.all_input_nodes}) == 1 < len(user.all_input_nodes):
            other = tuple(value for value in user.args if value is not chain[-1])
            chain.append(user)
        if (user := called(graph, only_user(chain[-1]))) in ACTIVATIONS:
            activation = ACTIVATIONS[user]
            chain.append(only_user(chain[-1]))
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


def module_called(graph, node):
    """The module that a node calls; None for other nodes, and for one with hooks or a `forward` of its own instance, which nothing
    else must replace."""
    module = graph.get_submodule(node.target) if node is not None and node.op == "call_module" else None
    return None if module is None or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) else module


def only_user(node):
    """The one node that reads what a node gives; None where there are others, or none, and for None."""
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def called(graph, node):
    """What a node calls: the class of a module without hooks, a function, or the name of a method; else None."""
    if node is None or node.op not in ("call_module", "call_function", "call_method"):
        return None
    if node.op != "call_module":
        return node.target
    module = module_called(graph, node)
    return None if module is None else type(module)
