"""ResNet-50 for small images, against torchvision's; its gauge with batch norm folded in, its taps, and its training."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tnlib import Dataset, conv_kernels, evaluate, load_model, singular_values, train, truncate
from tnlib.experiments import weights
from tnlib.experiments.controls import in_gauges
from tnlib.experiments.gauges import folded, gauged_errors, gauges
from tnlib.experiments.kernel_spectra import kernel_spectra, seen_taps
from tnlib.experiments.networks import NETWORKS, Recipe, network
from tnlib.experiments.resnet import ResNet50
from tnlib.experiments.torchvision_compat import import_torchvision
from tnlib.experiments.training import training_precision

SMALL = {"stem": "s2", "blocks": (1, 1, 1, 1), "width": 8}


def images(n=2, side=32):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def small(seed=0):
    """One block a stage, in eval mode; batch norm has statistics, scales and shifts that differ by channel."""
    torch.manual_seed(seed)
    model = ResNet50(10, **SMALL)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            module.momentum = None
    with torch.no_grad():
        model.train()(images(50))
    return model.eval()


# ---- the network -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stem, stride", [("s1", 1), ("s2", 2)])
def test_it_is_torchvisions_with_another_stem(stem, stride):
    torch.manual_seed(0)
    ours = ResNet50(7, stem)
    theirs = import_torchvision().models.resnet50(num_classes=7)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, stride, 1, bias=False), nn.Identity()
    nn.init.constant_(ours.layer4[2].bn3.weight, 0.5)  # else the last block is the identity, whatever is in it
    state = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("normalize.")}
    theirs.load_state_dict(state)
    torch.testing.assert_close(ours.eval()(images()), theirs.eval()((images() - 0.5) / 0.25))


@pytest.mark.parametrize("classes, parameters", [(10, 23_520_842), (100, 23_705_252)])
def test_parameter_count_is_that_of_others_for_cifar(classes, parameters):
    """23,520,842: also the ResNet50 of kuangliu/pytorch-cifar."""
    assert sum(p.numel() for p in ResNet50(classes).parameters()) == parameters


def test_kernels_in_forward_order():
    model, order = ResNet50(10).eval(), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    with torch.no_grad():
        model(images(1))
    kernels = conv_kernels(model)
    assert list(kernels) == order and len(kernels) == 53
    assert sum(kernel.shape[2:].numel() == 1 for kernel in kernels.values()) == 36


def test_blocks_start_as_the_identity():
    model = ResNet50(10, **SMALL)
    assert not any(stage[0].bn3.weight.any() for stage in (model.layer1, model.layer2, model.layer3, model.layer4))


@pytest.mark.parametrize("arguments", [dict(stem="s3"), dict(stem="s1", image_size=8), dict(stem="s2", image_size=28)],
                         ids=str)
def test_other_stems_and_images_that_are_too_small_are_refused(arguments):
    with pytest.raises(ValueError, match="takes the stem 's1' with images of at least 16 pixels a side, or 's2' with at "
                                         f"least 32, got stem='{arguments['stem']}', image_size="):
        ResNet50(10, **arguments)


def test_what_is_trained_depends_on_the_device():
    entry = network("resnet50")
    (gpu, long), (cpu, short) = (entry.trained_with("cifar10", device) for device in ("cuda", "cpu"))
    assert gpu == {"stem": "s1"} and cpu == {"stem": "s2"} and short.epochs < long.epochs
    assert entry.trained_with("shapes", "cuda") == entry.trained_with("shapes", "cpu") != (cpu, short)
    assert not short.bfloat16, "slower than float32 where a CPU has matrix tiles"


# ---- taps, and batch norm as a gauge -------------------------------------------------------------------------------

@pytest.mark.parametrize("stem, last", [("s1", 4), ("s2", 2)])
def test_every_tap_of_every_kernel_sees_data(stem, last):
    table = seen_taps(ResNet50(10, stem).eval(), 32)
    assert len(table) == 17 and (table["seen"] == 1).all() and table["height"].iloc[-1] == last
    assert ((table["met"] > 0.4) & (table["met"] < 1)).all()


def test_with_the_usual_stem_the_last_stage_sees_one_tap_in_nine():
    """What the stem is replaced for. The single tap is the middle one; of a plain kernel of ones it holds a ninth."""
    model = import_torchvision().models.resnet50().eval()
    for kernel in conv_kernels(model).values():
        kernel.fill_(1.0)
    seen = seen_taps(model, 32).set_index("layer")["seen"]
    assert seen["layer4.2.conv2"] == pytest.approx(1 / 9) and seen["layer3.0.conv2"] == 1


def test_taps_are_weighted_by_the_positions_at_which_they_meet_data():
    """On a 2×2 map a corner tap meets one position in four, an edge tap two, the middle all."""
    model = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1))
    nn.init.ones_(model[0].weight)
    assert seen_taps(model, 2)["met"].tolist() == pytest.approx([(4 * 1 / 4 + 4 * 1 / 2 + 1) / 9])


def test_folding_batch_norm_leaves_the_function_and_changes_the_rows():
    model = small()
    other = folded(model)
    torch.testing.assert_close(other(images(5)), model(images(5)), atol=1e-4, rtol=1e-4)
    for layer, norm in (("conv1", "bn1"), ("layer3.0.conv2", "layer3.0.bn2"), ("layer4.0.downsample.0", "layer4.0.downsample.1")):
        norm = model.get_submodule(norm)
        scale = F.batch_norm(torch.ones(1, norm.num_features), torch.zeros_like(norm.running_mean), norm.running_var,
                             norm.weight, eps=norm.eps)[0]
        kernel, fold = conv_kernels(model)[layer], conv_kernels(other)[layer]
        torch.testing.assert_close(fold, kernel * scale.view(-1, 1, 1, 1))
    assert len([m for m in other.modules() if isinstance(m, nn.BatchNorm2d) and (m.weight == 1).all()]) == 17
    torch.testing.assert_close(folded(other)(images(5)), model(images(5)), atol=1e-4, rtol=1e-4)


def test_a_batch_norm_that_follows_more_than_a_convolution_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    with pytest.raises(ValueError, match="Sequential has no convolution that a batch norm follows"):
        folded(model)
    assert list(gauges(model)) == ["trained"]
    with pytest.raises(ValueError, match="Sequential has no other gauge"):
        in_gauges(model)


def test_spectra_are_also_those_of_the_folded_kernels():
    model = small()
    asked = {"gauge_seed": 2, "gauge_spread": 0.5}
    assert set(kernel_spectra(model, samples=1, shuffled=False, layers=["conv1"])["gauge"]) == {"trained", "folded", "none"}
    table = kernel_spectra(model, samples=1, in_blocks=True, **asked)
    assert set(table["gauge"]) == {"trained", "folded", "folded, balanced", "folded, random", "none"} and table["layer"].nunique() == 17
    assert set(table[table["kind"] == "shuffled"]["gauge"]) == {"trained", "folded", "folded, balanced"}
    for gauge, other in gauges(model, *asked.values(), in_blocks=True).items():
        rows = table.query("layer == 'layer2.0.conv2' and cut == 'OUT,KW' and kind == 'kernel' and gauge == @gauge")
        values = singular_values(conv_kernels(other)["layer2.0.conv2"].double(), "OUT,KW")
        np.testing.assert_allclose(rows["value"], values / values.norm())
    assert set(table.query("layer == 'layer2.0.conv1'")["cut"]) == {"OUT"}, "a 1×1 kernel is a matrix"
    assert [gauge for _, cells in in_gauges(model, "OUT", [0.5]) for gauge in {labels["gauge"] for labels, _ in cells}] == [
        "trained", "folded"]


def test_a_truncation_has_another_error_with_batch_norm_folded_in():
    model, layer = small(), "layer2.0.conv2"
    kernel = conv_kernels(model)[layer]
    truncated = truncate(kernel, "OUT,KW", 5)
    trained, fold = gauged_errors(model, [({"rank": 5}, {layer: truncated})])
    assert (trained["gauge"], fold["gauge"]) == ("trained", "folded")
    norm = model.layer2[0].bn2
    rows = F.batch_norm(torch.ones(1, len(kernel)), torch.zeros(len(kernel)), norm.running_var, norm.weight, eps=norm.eps)[0]
    rows = rows.view(-1, 1, 1, 1)
    for row, scale in ((trained, 1), (fold, rows)):
        share = lambda part: ((scale * part).norm() / (scale * kernel).norm()).item()
        assert row["norm_kept"] == pytest.approx(share(truncated), rel=1e-4)
        assert row["relative_error"] == pytest.approx(share(kernel - truncated), rel=1e-4)
    assert fold["relative_error"] != pytest.approx(trained["relative_error"], rel=1e-3)


# ---- training and weights ------------------------------------------------------------------------------------------

RECIPE = Recipe(epochs=2, batch_size=12, peak_lr=0.05, sides=(32, 40))


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """(the data set, the network that `train` returned, the sides of the images that it saw)."""
    monkeypatch.setitem(NETWORKS, "resnet50", dataclasses.replace(
        NETWORKS["resnet50"], smaller={"cpu": (SMALL, RECIPE)}))
    monkeypatch.setattr(weights, "FOLDERS", (tmp_path,))
    random = np.random.RandomState(0)
    draw = lambda n: random.randint(0, 256, (n, 40, 40, 3)).astype(np.uint8)
    data = Dataset(draw(30), np.arange(30) % 3, draw(40), np.arange(40) % 3, name="mine")
    sides, forward = [], ResNet50.forward

    def noting(self, image):
        if self.training:
            sides.append(image.shape[-1])
        return forward(self, image)

    monkeypatch.setattr(ResNet50, "forward", noting)
    return data, train("resnet50", data, folder=tmp_path, device="cpu", progress=False), sides


def test_kernels_are_stored_as_float16_and_the_card_is_about_what_is_loaded(trained, tmp_path):
    data, model, sides = trained
    assert sides == [32] * 3 + [40] * 3, "36 of 40 images are trained on: three steps an epoch"
    card = json.loads((tmp_path / "resnet50-mine-s0.json").read_text())
    stored = weights.load_file(tmp_path / "resnet50-mine-s0.safetensors")
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.float16} == {
        f"{layer}.weight" for layer in conv_kernels(model)}
    loaded = load_model("resnet50", "mine")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert all(kernel.dtype == torch.float32 for kernel in conv_kernels(loaded).values())
    found = evaluate(loaded, data)
    assert (card["test_accuracy"], card["test_loss"]) == (found.accuracy, found.loss)
    assert card["architecture"] == {"stem": "s2", "blocks": [1, 1, 1, 1], "width": 8, "classes": 3, "image_size": 40}
    assert card["precision"] == training_precision(RECIPE, torch.device("cpu")) and card["recipe"]["sides"] == [32, 40]


def test_sides_take_equal_shares_of_the_epochs():
    recipe = Recipe(epochs=12, sides=(16, 24, 24, 32))
    assert [recipe.side(epoch, 32) for epoch in range(12)] == [16] * 3 + [24] * 6 + [32] * 3
    assert [recipe.side(epoch, 64) for epoch in range(0, 12, 3)] == [32, 48, 48, 64], "the last is an image's own side"
    assert [Recipe(epochs=2).side(epoch, 28) for epoch in range(2)] == [28, 28]


@pytest.mark.parametrize("given, message", [({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
                                            ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
                                            ({"crop_padding": -1}, "crop_padding must be a whole number of at least 0, got -1"),
                                            ({"sides": (24, 0)}, "a side must be a whole number of at least 1, got 0")])
def test_a_recipe_that_cannot_be_followed_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**given)
