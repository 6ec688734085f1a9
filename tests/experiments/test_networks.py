"""The networks by their names, and any network's kernels in the order in which its forward pass uses them."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tnlib import conv_kernels
from tnlib.experiments.networks import NETWORKS, Normalize, Recipe, Vanilla, network
from tnlib.experiments.torchvision_compat import import_torchvision


def images(n=2, side=32):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def used_kernels(model, image):
    """Names of the convolutions in the order in which a forward pass calls them."""
    order = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    with torch.no_grad():
        model(image)
    return order


# ---- by their names ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["vanilla", "resnet50"])
@pytest.mark.parametrize("dataset, device", [("cifar10", "cuda"), ("cifar100", "cpu"), ("shapes", "cpu")])
def test_without_decay_all_else_is_alike(name, dataset, device):
    (arguments, recipe), (others, without) = (network(called).trained_with(dataset, device) for called in (name, f"{name}-no-decay"))
    assert arguments == others and recipe.weight_decay > 0 == without.weight_decay
    assert dataclasses.asdict(recipe) | {"weight_decay": 0.0} == dataclasses.asdict(without)
    assert NETWORKS[f"{name}-no-decay"].half is NETWORKS[name].half


# ---- the vanilla network -----------------------------------------------------------------------------------------

def test_vanilla_is_four_blocks_and_two_linear_layers():
    """The same function as torch's own layers in a row, with the network's weights."""
    torch.manual_seed(0)
    model = Vanilla(10, channels=(4, 5, 6, 7), hidden=8).eval()
    for layer in (model.conv1, model.conv2, model.conv3, model.conv4, model.linear1, model.linear2):
        nn.init.normal_(layer.bias)
    blocks = [part for conv in (model.conv1, model.conv2, model.conv3, model.conv4)
              for part in (conv, nn.ReLU(), nn.AvgPool2d(2))]
    row = nn.Sequential(*blocks, nn.Flatten(), model.linear1, nn.ReLU(), model.linear2)
    torch.testing.assert_close(model(images()), row((images() - 0.5) / 0.25))


@pytest.mark.parametrize("classes, parameters", [(10, 653386), (100, 676516)])
def test_parameter_count_of_the_published_network(classes, parameters):
    """Σ OUT·(IN·9 + 1) over 3 → 32 → 64 → 128 → 256, then 1024 → 256 → classes, counted by hand."""
    model = network("vanilla").build(classes=classes, **network("vanilla").arguments)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert parameters == 896 + 18496 + 73856 + 295168 + 262400 + 257 * classes
    assert not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("channels", [(32, 64, 128, 256), (3, 5, 4, 2)], ids=str)
def test_kernels_of_vanilla(channels):
    model = Vanilla(10, channels)
    kernels = conv_kernels(model)
    assert list(kernels) == ["conv1", "conv2", "conv3", "conv4"] == used_kernels(model, images())
    assert [tuple(kernel.shape) for kernel in kernels.values()] == [
        (out, into, 3, 3) for into, out in zip((3, *channels), channels)]


@pytest.mark.parametrize("side", [16, 32, 64])
def test_image_size_is_a_parameter(side):
    model = Vanilla(7, (2, 3, 4, 5), hidden=6, image_size=side)
    assert model(images(3, side)).shape == (3, 7)
    assert model.linear1.in_features == 5 * (side // 16) ** 2


@pytest.mark.parametrize("arguments", [dict(channels=(32, 64, 128)), dict(image_size=28)], ids=str)
def test_vanilla_refuses_other_forms(arguments):
    with pytest.raises(ValueError, match="four channel counts and an image size divisible by 16, got channels="):
        Vanilla(10, **arguments)


def test_initial_weights_let_activations_keep_their_size():
    """He initialisation: variance 2 / (IN·9), and no bias."""
    torch.manual_seed(0)
    model = Vanilla(10)
    for layer in (model.conv2, model.conv3, model.conv4, model.linear1):
        fan_in = layer.weight[0].numel()
        assert layer.weight.var().item() == pytest.approx(2 / fan_in, rel=0.05)
        assert not layer.bias.any()


def test_normalisation_is_kept_with_the_weights():
    layer = Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert set(layer.state_dict()) == {"mean", "std"} and not list(layer.parameters())
    expected = import_torchvision().transforms.functional.normalize(images(), [0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    torch.testing.assert_close(layer(images()), expected)
    assert {"normalize.mean", "normalize.std"} < set(Vanilla(10).state_dict())


# ---- names and recipes -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, said", [*((name, repr(name)) for name in ("vanila", "", "ResNet50")), (None, "of type NoneType"), (nn.ReLU(), "of type ReLU")], ids=repr)
def test_an_unknown_network_names_what_there_is(name, said):
    with pytest.raises(ValueError, match=f"unknown network {said}: it takes 'vanilla'"):
        network(name)


def test_a_data_set_that_is_called_like_a_device_is_no_device():
    assert network("resnet50").trained_with("cpu", "cuda") == network("resnet50").trained_with("photos", "cuda")


def test_recipes_hold_known_parameters_only_and_do_not_change():
    (_, recipe), (_, on_shapes) = (network("vanilla").trained_with(name, "cpu") for name in ("cifar10", "shapes"))
    assert on_shapes.epochs < recipe.epochs == network("vanilla").recipe.epochs
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 1
    with pytest.raises(TypeError, match="learning_rate"):
        Recipe(learning_rate=0.1)


# ---- the kernels of any network ----------------------------------------------------------------------------------

@pytest.mark.parametrize("name, layers", [("resnet18", 20), ("resnet50", 53), ("mobilenet_v3_small", 52)])
def test_kernels_of_torchvisions_networks_in_forward_order(name, layers):
    model = getattr(import_torchvision().models, name)(weights=None).eval()
    kernels = conv_kernels(model)
    assert list(kernels) == used_kernels(model, images(1)) and len(kernels) == layers
    modules = dict(model.named_modules())
    assert all(torch.equal(kernel, modules[layer].weight) for layer, kernel in kernels.items())


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.rest = nn.Conv2d(4, 6, (1, 3)), nn.Sequential(nn.ReLU(), nn.Conv2d(6, 9, 2, groups=3))
        self.up = nn.ConvTranspose2d(9, 2, 3)

    def forward(self, image):
        return self.up(self.rest(self.stem(image)))


def test_kernels_are_named_and_shaped_as_in_torch():
    shapes = {name: tuple(kernel.shape) for name, kernel in conv_kernels(Grouped()).items()}
    assert shapes == {"stem": (6, 4, 1, 3), "rest.1": (9, 2, 2, 2)}


def test_kernels_are_the_networks_own_without_gradients():
    model = Vanilla(10, (2, 2, 2, 2))
    kernel = conv_kernels(model)["conv2"]
    assert not kernel.requires_grad and kernel.data_ptr() == model.conv2.weight.data_ptr()


@pytest.mark.parametrize("model, error, message", [
    (nn.Linear(3, 2), ValueError, "Linear has no Conv2d layers"), ("vanilla", TypeError, "torch.nn.Module, got str"),
    (Vanilla, TypeError, "got type"), (F.conv2d, TypeError, "got builtin_function_or_method"),
    (torch.jit.ScriptModule(), TypeError, "TorchScript, in which no kernel can be replaced"),
    (nn.LazyConv2d(2, 1), ValueError, "the model's weight has no shape yet: run the model once")],
    ids=["linear", "name", "class", "function", "script", "lazy"])
def test_what_has_no_kernels_is_named(model, error, message):
    with pytest.raises(error, match=message):
        conv_kernels(model)
