"""Gauges of a ReLU network: the function stays, the kernels do not, and the balanced one is where it should be."""

import copy

import pytest
import torch
from torch import nn

from tnlib.experiments.chains import chain, channel_weights
from tnlib.experiments.gauges import balanced, factors_in_gauges, folded, gauged_errors, gauges, random_gauge, rescaled, within_blocks
from tnlib.experiments.kernel_spectra import entropies_without_start
from tnlib.experiments.networks import Vanilla, conv_kernels
from tnlib.experiments.replacements import dense
from tnlib.experiments.torchvision_compat import import_torchvision
from tnlib.experiments.truncations import cut_truncations
from tnlib.tensors.cuts import relative_error, truncate
from tnlib.tensors.spectra import entanglement_entropy

GAUGES = {"balanced": balanced, "random": lambda model: random_gauge(model, seed=0),
          "balanced-random": lambda model: balanced(random_gauge(model, seed=1, spread=2.0))}
every_gauge = pytest.mark.parametrize("gauge", GAUGES.values(), ids=GAUGES)


def vanilla(seed=0, dtype=torch.float64):
    """A small `Vanilla` with biases, as a trained one has: with zero biases half of a gauge would go untested."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Vanilla(5, channels=(4, 6, 8, 10), hidden=12, image_size=32).to(dtype).eval()
        for layer in chain(model):
            nn.init.normal_(layer.bias, std=0.3)
    return model


def images(dtype=torch.float64):
    return torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)


def sides(model):
    """(incoming, outgoing) norms of every hidden channel, layer after layer."""
    layers = chain(model)
    for layer, following in zip(layers, layers[1:]):
        channels = len(layer.weight)
        yield (layer.weight.detach().flatten(1).norm(dim=1),
               following.weight.detach().view(len(following.weight), channels, -1).norm(dim=(0, 2)))


def sum_of_squares(model):
    return sum(layer.weight.square().sum().item() for layer in chain(model))


@every_gauge
def test_the_function_is_unchanged(gauge):
    model = vanilla()
    turned = gauge(model)
    assert all(not torch.allclose(a.weight, b.weight) for a, b in zip(chain(model), chain(turned)))
    expected = model(images())
    torch.testing.assert_close(turned(images()), expected, rtol=0, atol=1e-12 * expected.abs().max().item())


def test_the_function_is_unchanged_in_float32():
    model = vanilla(dtype=torch.float32)
    turned = balanced(model)
    assert turned.conv1.weight.dtype == torch.float32
    expected = model(images(torch.float32))
    torch.testing.assert_close(turned(images(torch.float32)), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@every_gauge
def test_the_model_given_stays_as_it_is(gauge):
    model = vanilla()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gauge(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_balanced_norms_are_equal_on_both_sides_of_every_hidden_channel():
    model = random_gauge(vanilla(), seed=0)
    assert any((incoming / outgoing - 1).abs().max() > 0.5 for incoming, outgoing in sides(model))
    for incoming, outgoing in sides(balanced(model)):
        torch.testing.assert_close(incoming, outgoing, rtol=1e-7, atol=0)


@pytest.mark.parametrize("spread", [1.0, 0.1, 0.01])
def test_balanced_has_the_least_sum_of_squares(spread):
    """Far from it and close to it: at a minimum any step goes up."""
    best = balanced(vanilla())
    for seed in range(10):
        assert sum_of_squares(random_gauge(best, seed, spread)) > sum_of_squares(best)


def test_balanced_is_one_gauge_wherever_it_starts():
    first, second = balanced(vanilla()), balanced(random_gauge(vanilla(), seed=3))
    for a, b in zip(chain(first), chain(second)):
        torch.testing.assert_close(a.weight, b.weight, rtol=1e-6, atol=1e-9)


def test_spectra_are_not_invariants_of_the_function():
    model = vanilla()
    before, after = (entanglement_entropy(m.conv3.weight, "OUT,KW").item() for m in (model, random_gauge(model, 0)))
    assert abs(before - after) > 0.1


def test_random_gauge_is_drawn_by_its_seed_and_spread():
    model = vanilla()
    weight = lambda seed, spread=1.0: random_gauge(model, seed, spread).conv2.weight
    assert torch.equal(weight(0), weight(0)) and not torch.allclose(weight(0), weight(1))
    assert torch.equal(weight(0, 0.0), model.conv2.weight)
    factors = (random_gauge(model, 0).linear1.bias / model.linear1.bias).log()
    assert factors.std().item() == pytest.approx(1, abs=0.6)


@pytest.mark.parametrize("side", ["incoming", "outgoing"])
def test_a_dead_channel_is_left_alone(side):
    model = vanilla()
    with torch.no_grad():
        if side == "incoming":
            model.conv2.weight[3] = 0
        else:
            model.conv3.weight[:, 3] = 0
    turned = balanced(model)
    assert all(torch.isfinite(tensor).all() for tensor in turned.state_dict().values())
    torch.testing.assert_close(turned(images()), model(images()))
    assert turned.conv2.bias[3] == model.conv2.bias[3]  # its factor is 1


def sequential(*middle, following=None):
    return nn.Sequential(nn.Conv2d(3, 4, 3), *middle, following or nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
                         nn.Linear(4 * 4, 2))


NOT_CHAINS = {
    "batch-norm": sequential(nn.BatchNorm2d(4), nn.ReLU()),
    "group-norm": sequential(nn.GroupNorm(2, 4), nn.ReLU()),
    "gelu": sequential(nn.GELU()),
    "prelu": sequential(nn.PReLU()),
    "transposed": sequential(nn.ConvTranspose2d(4, 4, 1), nn.ReLU()),
    "plain-norm": sequential(nn.InstanceNorm2d(4), nn.ReLU()),
    "tanh": sequential(nn.Tanh()),
    "groups": sequential(nn.ReLU(), following=nn.Conv2d(4, 4, 3, groups=2)),
    "branches": sequential(nn.ReLU(), following=nn.Conv2d(3, 4, 3)),
    "concatenation": sequential(nn.ReLU(), following=nn.Conv2d(8, 4, 3)),
    "one-layer": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    "no-layer": nn.Sequential(nn.ReLU()),
}


@pytest.mark.parametrize("model", NOT_CHAINS.values(), ids=NOT_CHAINS)
@pytest.mark.parametrize("gauge", [balanced, lambda model: random_gauge(model, 0)], ids=["balanced", "random"])
def test_networks_without_gauges_are_refused(model, gauge):
    with pytest.raises(ValueError, match="not a plain chain of convolutions and linear layers"):
        gauge(model)


@pytest.mark.parametrize("middle", [(nn.ReLU(),), (nn.LeakyReLU(0.1), nn.Dropout(0.5)), (nn.MaxPool2d(1), nn.ReLU())],
                         ids=["relu", "leaky-relu", "max-pool"])
def test_any_chain_of_positively_homogeneous_layers_has_gauges(middle):
    torch.manual_seed(0)
    model, image = sequential(*middle).double().eval(), images()[:, :, :6, :6]
    torch.testing.assert_close(balanced(random_gauge(model, 0))(image), model(image))


class Late(nn.Module):
    """Its layers are defined in another order than they are called in; with `residual`, a value goes two ways."""

    def __init__(self, residual=False):
        super().__init__()
        self.last, self.late, self.early = nn.Linear(4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.residual = residual

    def forward(self, x):
        x = torch.relu(self.early(x))
        x = x + torch.relu(self.late(x)) if self.residual else torch.relu(self.late(x))
        return self.last(x.mean((2, 3)).view(x.size(0), -1))


def test_layers_are_those_in_the_order_in_which_they_are_called():
    model, image = Late().double(), torch.rand(5, 3, 6, 6, dtype=torch.float64)
    assert chain(model) == [model.early, model.late, model.last]
    for gauge in (balanced(model), random_gauge(model, 0)):
        torch.testing.assert_close(gauge(image), model(image))
        assert not torch.allclose(gauge.early.weight, model.early.weight)
    with pytest.raises(ValueError, match="Late is not a plain chain"):
        balanced(Late(residual=True))


def ones(*lengths):
    return [torch.ones(length) for length in lengths]


BAD = {
    "too-few": (ones(4, 6, 8), r"of lengths \[4, 6, 8, 10, 12\], got \[4, 6, 8\]"),
    "too-short": (ones(4, 6, 8, 10, 11), r"got \[4, 6, 8, 10, 11\]"),
    "negative": ([-ones(4)[0], *ones(6, 8, 10, 12)], "factors must be positive"),
    "zero": ([0 * ones(4)[0], *ones(6, 8, 10, 12)], "factors must be positive"),
    "nan": ([ones(4)[0] * float("nan"), *ones(6, 8, 10, 12)], "factors must be positive"),
}


@pytest.mark.parametrize("factors, message", BAD.values(), ids=BAD)
def test_bad_factors_are_named(factors, message):
    with pytest.raises(ValueError, match=message):
        rescaled(vanilla(), factors)


class Reused(nn.Module):
    """A batch norm after two convolutions, or a convolution before two batch norms."""

    def __init__(self, convolutions, norms):
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(convolutions))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(norms))

    def forward(self, x):
        for k in range(2):
            x = self.norms[k % len(self.norms)](self.convolutions[k % len(self.convolutions)](x))
        return x


@pytest.mark.parametrize("convolutions, norms", [(2, 1), (1, 2)])
def test_what_is_used_twice_cannot_be_folded(convolutions, norms):
    with pytest.raises(ValueError, match="no convolution that a batch norm follows"):
        folded(Reused(convolutions, norms))


def test_folding_leaves_the_function():
    model = Reused(2, 2)
    for norm in model.norms:
        norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.data.normal_(), norm.bias.data.normal_()
    model.eval()
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(folded(model)(image), model(image))


def test_weights_of_a_channel_are_its_filter_and_what_reads_it():
    model = vanilla()
    assert channel_weights(model) == {"conv1": 3 * 9 + 6 * 9, "conv2": 4 * 9 + 8 * 9, "conv3": 6 * 9 + 10 * 9, "conv4": 8 * 9 + 12 * 4}
    with pytest.raises(ValueError, match="Late is not a plain chain"):
        channel_weights(Late(residual=True))


# ---- behind batch norms --------------------------------------------------------------------------------------------

def with_statistics(model):
    """`model` in float64 and eval mode, every batch norm with statistics, factors and shifts of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.data.uniform_(0.5, 2), norm.bias.data.normal_()
    return model.double().eval()


def torchvision_model(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return with_statistics(import_torchvision().models.get_model(name, num_classes=5))


def blocks_of(resnet):
    return [[block.get_submodule(f"conv{k}") for k in (1, 2, 3) if hasattr(block, f"conv{k}")]
            for name, block in resnet.named_modules() if name.startswith("layer") and name.count(".") == 1]


@pytest.mark.parametrize("name, blocks, length", [("resnet18", 8, 2), ("resnet50", 16, 3)])
def test_within_blocks_the_function_stays_and_all_inner_channels_are_free(name, blocks, length):
    model, image = torchvision_model(name), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    whole, turned = folded(model), within_blocks(model, seed=3)
    assert list(turned) == ["balanced", "random"] and len(blocks_of(model)) == blocks
    with torch.no_grad():
        for network in turned.values():
            torch.testing.assert_close(network(image), model(image), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(network.conv1.weight, whole.conv1.weight) for network in turned.values()), "a shortcut leads around what follows"
    for before, balanced_block, random_block in zip(*map(blocks_of, (whole, *turned.values())), strict=True):
        assert len(before) == length
        for layer, following in zip(balanced_block, balanced_block[1:]):
            torch.testing.assert_close(layer.weight.flatten(1).norm(dim=1), following.weight.transpose(0, 1).flatten(1).norm(dim=1), rtol=1e-6, atol=0)
        rows = [(after.weight / conv.weight)[:, 0, 0, 0].log() for conv, after in zip(before, random_block)]
        columns = [(after.weight / conv.weight)[0, :, 0, 0].log() for conv, after in zip(before[1:], random_block[1:])]
        for row, column in zip(rows, columns):
            assert row.std().item() > 0.5 and column.std().item() > 0.5
        torch.testing.assert_close(columns[0] - columns[0][0], rows[0][0] - rows[0])


class Block(nn.Module):
    """Two convolutions with a batch norm each and, between them, what `between` does."""

    def __init__(self, between, groups=1, also=None):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, groups=groups), nn.BatchNorm2d(4)
        self.between, self.also = between, also

    def forward(self, x):
        x = self.between(self.norm(self.first(x)))
        y = self.norm2(self.second(x))
        return y + x if self.also else y


@pytest.mark.parametrize("between", [nn.ReLU(), nn.ReLU(inplace=True), torch.relu, nn.functional.relu, lambda x: x.relu()],
                         ids=["module", "in-place", "torch", "functional", "method"])
def test_any_way_to_write_a_relu_leads_on(between):
    model, image = with_statistics(Block(between)), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    for network in within_blocks(model).values():
        torch.testing.assert_close(network(image), model(image))
        assert not torch.allclose(network.first.weight, folded(model).first.weight)


@pytest.mark.parametrize("block", [Block(nn.GELU()), Block(nn.Identity()), Block(nn.ReLU6()), Block(nn.ReLU(), groups=2), Block(nn.ReLU(), also=True)],
                         ids=["gelu", "none", "relu6", "groups", "shortcut"])
def test_what_does_not_lead_on_has_no_free_channels(block):
    with pytest.raises(ValueError, match="Block has no convolution that goes into another through its batch norm and a ReLU alone"):
        within_blocks(with_statistics(block))
    assert list(gauges(block, in_blocks=True)) == ["trained", "folded"]


def with_shared_weight(model):
    model.also = nn.Conv2d(*model.first.weight.shape[1::-1], 3)
    model.also.weight = model.first.weight
    return model


def with_hook(model, name):
    model.get_submodule(name).register_forward_hook(lambda module, arguments, output: output + 1)
    return model


@pytest.mark.parametrize("model", [with_shared_weight(Block(nn.ReLU())), with_hook(Block(nn.ReLU()), "first"), with_hook(Block(nn.ReLU()), "norm"),
                                   with_hook(Block(nn.ReLU()), "between"), with_hook(Block(nn.ReLU()), "second")],
                         ids=["shared", "hook-before", "hook-on-norm", "hook-on-relu", "hook-behind"])
def test_what_cannot_be_written_or_may_do_anything_stays_as_it_is(model):
    model = with_statistics(model)
    image = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="goes into another"):
        within_blocks(model)
    for network in gauges(model, in_blocks=True).values():
        torch.testing.assert_close(network(image), model(image))


@pytest.mark.parametrize("normalized", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm], ids=["weight", "spectral"])
def test_a_weight_that_is_computed_is_not_folded(normalized):
    model = with_statistics(Block(nn.ReLU()))
    normalized(model.first)
    image = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    for network in gauges(model.eval(), in_blocks=True).values():
        torch.testing.assert_close(network(image), model(image))


class Permuted(nn.Module):
    """Its linear layer reads channels last."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).permute(0, 2, 3, 1).flatten(1))


class Between(nn.Module):
    """A convolution to 4 channels of 8×8, and a linear layer that reads what `between` makes of them."""

    def __init__(self, between, features):
        super().__init__()
        self.conv, self.head, self.between = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(features, 2), between

    def forward(self, x):
        return self.head(self.between(torch.relu(self.conv(x))))


MIXING = {
    "mean-over-channels": (lambda x: x.mean(1).flatten(1), 64),
    "mean-over-channels-and-rows": (lambda x: x.mean((1, 2)), 8),
    "rows-of-channels": (lambda x: x.view(-1, 4, 64), 64),
    "all-but-rows": (lambda x: torch.mean(x, dim=(1, -1)), 8),
    "over-all": (lambda x: torch.flatten(x).view(-1, 256), 256),
}
LEAVING = {
    "mean": (lambda x: x.mean((2, 3)), 4),
    "mean-from-the-end": (lambda x: torch.mean(x, dim=[-2, -1]), 4),
    "view": (lambda x: x.view(x.size(0), -1), 256),
    "reshape": (lambda x: x.reshape((-1, 256)), 256),
    "flatten": (lambda x: torch.flatten(x, start_dim=1), 256),
    "flatten-twice": (lambda x: x.flatten(2).mean(2), 4),
}


@pytest.mark.parametrize("between, features", MIXING.values(), ids=MIXING)
def test_what_mixes_channels_has_no_gauges(between, features):
    with pytest.raises(ValueError, match="not a plain chain"):
        balanced(Between(between, features))


@pytest.mark.parametrize("between, features", LEAVING.values(), ids=LEAVING)
def test_what_leaves_channels_where_they_are_has_gauges(between, features):
    model, image = Between(between, features).double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    for network in (balanced(model), random_gauge(model, 0)):
        torch.testing.assert_close(network(image), model(image))


@pytest.mark.parametrize("model", [Permuted(), sequential(nn.ChannelShuffle(2)), nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(0), nn.Linear(4, 2)), sequential(nn.ConstantPad2d(1, 1.0)), with_hook(sequential(nn.ReLU()), "1"),
                                   nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), with_hook(nn.Sequential(nn.Conv2d(3, 3, 3)), "0"))],
                         ids=["permuted", "shuffled", "flattened-over-images", "padded", "hook", "hook-on-layer"])
def test_chains_that_move_or_add_to_channels_have_no_gauges(model):
    with pytest.raises(ValueError, match="not a plain chain"):
        balanced(model)


def test_gauges_of_blocks_are_given_where_asked_for():
    model = with_statistics(Block(nn.ReLU()))
    assert list(gauges(model)) == ["trained", "folded"]
    assert list(gauges(model, in_blocks=True)) == ["trained", "folded", "folded, balanced", "folded, random"]
    assert list(gauges(vanilla(), in_blocks=True)) == ["trained", "balanced", "random"]


def test_gauged_errors_take_factors():
    model = vanilla()
    factors = list(cut_truncations(model, ["conv2"], ["OUT"], [3]))
    dense = [(labels, {"conv2": truncate(model.conv2.weight.detach(), "OUT", 3)}) for labels, _ in factors]
    for row, other in zip(gauged_errors(model, factors), gauged_errors(model, dense), strict=True):
        assert row["relative_error"] == pytest.approx(other["relative_error"], rel=1e-5)


def with_zeros(model):
    """Some of its entries, one whole filter, one channel's and, where there are norms, one of these are zero."""
    with torch.no_grad():
        for number, layer in enumerate(module for module in model.modules() if isinstance(module, nn.Conv2d)):
            layer.weight *= torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(number), dtype=layer.weight.dtype) > 0.3
            layer.weight[1, 0] = 0
            layer.weight[2] = 0
    return model


@pytest.mark.parametrize("make", [lambda: with_zeros(vanilla()), lambda: with_zeros(with_statistics(Block(nn.ReLU())))], ids=["chain", "batch-norm"])
def test_where_a_kernel_is_zero_its_truncation_is_rescaled_as_well(make):
    """The truncated network in the whole one's gauge: its logits stay, and its kernels are what the errors are of."""
    model, image = make(), images()
    cells = list(cut_truncations(model, cuts=["OUT", "KW"], ranks=[1, 2]))
    found = {(row["layer"], row["cut"], row["rank"], row["gauge"]): row for row in gauged_errors(model, cells, seed=4)}
    for labels, kernels in cells:
        for gauge, of in factors_in_gauges(model, 4).items():
            ((layer, truncated),) = kernels.items()
            other = copy.deepcopy(gauges(model, 4)[gauge])
            whole = other.get_submodule(layer).weight.detach().clone()
            torch.testing.assert_close(of[layer] * model.get_submodule(layer).weight, whole)
            other.get_submodule(layer).weight.data = of[layer] * dense(truncated)
            plain = copy.deepcopy(model)
            plain.get_submodule(layer).weight.data = dense(truncated)
            torch.testing.assert_close(other(image), plain(image))
            row = found[labels["layer"], labels["cut"], labels["rank"], gauge]
            assert row["relative_error"] == pytest.approx(relative_error(whole, other.get_submodule(layer).weight.detach()).item(), rel=1e-5)


@pytest.mark.parametrize("make", [lambda: with_zeros(vanilla()), lambda: with_zeros(with_statistics(Block(nn.ReLU())))], ids=["chain", "batch-norm"])
def test_what_is_left_without_the_start_does_not_overlap_with_it(make):
    model, start = make(), copy.deepcopy(make())
    for number, layer in enumerate(module for module in start.modules() if isinstance(module, nn.Conv2d)):
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(number))
    names = list(gauges(model))
    found = entropies_without_start(model, start, names[1:])
    assert {gauge for *_, gauge in found} == set(names[1:])
    for gauge in names[1:]:
        for layer, kernel in conv_kernels(gauges(model)[gauge]).items():
            before = conv_kernels(start)[layer] * factors_in_gauges(model)[gauge][layer]
            own, first = kernel.flatten(), before.flatten()
            left = (own - torch.linalg.lstsq(first[:, None], own[:, None]).solution[0] * first).view(kernel.shape)
            assert found[layer, "OUT", gauge] == pytest.approx(entanglement_entropy(left, "OUT").item(), rel=1e-6)


def test_a_truncation_loses_another_norm_in_another_gauge_and_the_function_stays():
    model = vanilla()
    truncated = copy.deepcopy(model)
    truncated.conv2.weight.data = truncate(model.conv2.weight.detach(), "OUT,KW", 3)
    rows = gauged_errors(model, [({"rank": 3}, {"conv2": truncated.conv2.weight.detach()})], seed=4)
    assert [row["gauge"] for row in rows] == ["trained", "balanced", "random"] and {row["rank"] for row in rows} == {3}
    for row, gauge in zip(rows, (lambda m: m, balanced, lambda m: random_gauge(m, 4))):
        kernel = gauge(model).conv2.weight.detach()
        factors = kernel / model.conv2.weight.detach()
        assert row["relative_error"] == pytest.approx(
            ((kernel - factors * truncated.conv2.weight.detach()).norm() / kernel.norm()).item(), rel=1e-5)
    assert rows[0]["relative_error"] == pytest.approx(
        relative_error(model.conv2.weight.detach(), truncated.conv2.weight.detach()).item(), rel=1e-5)
    assert len({round(row["relative_error"], 4) for row in rows}) == 3
