"""How many layers are shown: all of a few; of many some, and an axis that names their stages."""

import matplotlib.pyplot as plt
import pytest
import torch

from tnlib.experiments.networks import conv_kernels, network
from tnlib.publishing.depth import depth_axis, panel_layers, places, stage


@pytest.fixture(scope="module")
def resnet50():
    return conv_kernels(network("resnet50").build(classes=10, stem="s2"))


def test_the_panels_of_resnet50_are_the_first_kernel_of_each_stage_and_the_last(resnet50):
    assert panel_layers(resnet50) == ["conv1", "layer1.0.conv2", "layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2",
                                      "layer4.2.conv2"]


def test_the_axis_of_resnet50_has_a_name_in_the_middle_of_each_stage_and_lines_between(resnet50):
    layers = list(resnet50)
    fig, ax = plt.subplots()
    depth_axis(ax, layers)
    names = dict(zip([label.get_text() for label in ax.get_xticklabels()], ax.get_xticks()))
    assert list(names) == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    for name, middle in names.items():
        places = [k for k, layer in enumerate(layers, start=1) if stage(layer) == name]
        assert middle == sum(places) / len(places)
    assert [line.get_xdata()[0] for line in ax.lines] == [1.5, 11.5, 24.5, 43.5]
    plt.close(fig)


def test_the_place_of_a_kernel_is_told_by_depth_size_stage_and_position_in_the_block(resnet50):
    found = places(resnet50).set_index("layer")
    assert found.index.tolist() == list(resnet50) and found["depth"].tolist() == list(range(1, 54))
    assert found.loc["layer3.0.conv2"].to_dict() == {"depth": 26, "size": "3×3", "stage": "layer3", "position": "conv2"}
    assert found.loc["layer1.0.downsample.0", ["size", "position"]].tolist() == ["1×1", "downsample.0"]
    assert found.loc["conv1", ["stage", "position"]].tolist() == ["conv1", "conv1"]
    alike = found.groupby(["size", "position"]).size()
    assert alike["1×1", "conv1"] == alike["3×3", "conv2"] == alike["1×1", "conv3"] == 16  # blocks: 3 + 4 + 6 + 3
    assert alike["1×1", "downsample.0"] == 4


def test_the_same_down_a_map(resnet50):
    fig, ax = plt.subplots()
    depth_axis(ax, list(resnet50), "y")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert [line.get_ydata()[0] for line in ax.lines] == [1.5, 11.5, 24.5, 43.5] and ax.get_ylim() == (53.5, 0.5)
    plt.close(fig)


def test_a_few_layers_are_all_shown_and_named():
    kernels = {f"conv{k}": torch.zeros(2, 2, 3, 3) for k in range(1, 9)}
    fig, ax = plt.subplots()
    depth_axis(ax, list(kernels))
    assert [label.get_text() for label in ax.get_xticklabels()] == list(kernels) == panel_layers(kernels)
    assert list(ax.get_xticks()) == list(range(1, 9)) and not ax.lines
    plt.close(fig)


def test_layers_without_a_dot_are_stages_of_their_own():
    kernels = {f"conv{k}": torch.zeros(2, 2, 3, 3) for k in range(1, 13)}
    assert panel_layers(kernels) == list(kernels)


def test_the_axis_begins_and_ends_half_a_layer_beyond_the_layers():
    fig, ax = plt.subplots()
    depth_axis(ax, [f"layer{k // 4}.conv{k}" for k in range(12)])
    assert ax.get_xlim() == (0.5, 12.5)
    plt.close(fig)


def test_of_eight_layers_of_one_stage_all_have_panels_and_of_nine_some():
    of_one_stage = lambda count: {f"layer1.{k}": torch.zeros(2, 2, 3, 3) for k in range(count)}
    assert panel_layers(of_one_stage(8)) == list(of_one_stage(8))
    assert panel_layers(of_one_stage(9)) == ["layer1.0", "layer1.8"]


@pytest.mark.parametrize("larger, expected", [((), ["layer1.0"]), ((3, 5, 7), ["layer1.0", "layer1.3", "layer1.7"])])
def test_the_first_layer_has_a_panel_even_where_its_kernel_is_1x1(larger, expected):
    size = lambda k: (3, 3) if k in larger else (1, 1)
    assert panel_layers({f"layer1.{k}": torch.zeros(2, 2, *size(k)) for k in range(9)}) == expected
