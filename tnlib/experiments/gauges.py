"""Gauges: rescalings of channels that leave a network's function as it is, and change its kernels.

Channel c of layer k times a, and layer k+1's weights on that channel divided by a: ReLU and average pooling let a
positive factor through, so the function is the same. A batch norm undoes any factor that it is given, and behind it the
channels are as free as those of a plain chain are, where they go into one layer alone. Spectra, entropies and relative
errors are not the same: a statement about them is one about a gauge.
"""

import copy

import torch
from torch import nn

from .chains import chain, normalized, runs_in_blocks, traced
from .networks import conv_kernels
from .replacements import compared, dense, not_replaceable

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
    for conv, norm in normalized(copied, traced(copied)).items():
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
        for layers, norms in runs_in_blocks(found[name]):
            _rescale(layers, choose(layers), norms)
    return found


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
