"""ResNet-50 for small images: torchvision's, with another first layer and no max-pool."""

from torch import nn

from .networks import Normalize
from .torchvision_compat import import_torchvision

resnet = import_torchvision().models.resnet

STEMS = {"s1": 1, "s2": 2}  # the stride of the first layer, a 3×3 convolution


class ResNet50(resnet.ResNet):
    """Bottleneck blocks of 1×1, 3×3 and 1×1 convolutions with batch norm, in four stages (He et al. 2016, table 1).

    Takes (N, 3, S, S) floats in [0, 1] and returns (N, classes) logits; S is `image_size`. torchvision's own first
    layers (7×7 with stride 2, then a max-pool) are made for images of 224: at 32 they leave the last stage a single
    position, where eight of a 3×3 kernel's nine taps never see data. `stem` is "s1" (3×3 with stride 1) or "s2" (with
    stride 2), without a max-pool. `blocks`: of each stage, `width`: channels of the first stage's 3×3 convolutions;
    ResNet-50 has (3, 4, 6, 3) and 64, others are for trying. The last batch norm of a block
    starts at 0, so that the block starts as the identity (Goyal et al. 2017). Raises `ValueError` for another stem, and
    for images that leave the last stage less than 2×2 positions.
    """

    def __init__(self, classes: int, stem: str = "s1", blocks=(3, 4, 6, 3), width: int = 64,
                 image_size: int = 32):
        if stem not in STEMS or image_size < 16 * STEMS[stem]:
            raise ValueError(f"ResNet50 takes the stem 's1' with images of at least 16 pixels a side, or 's2' with at "
                             f"least 32, got stem={stem!r}, image_size={image_size}")
        super().__init__(resnet.Bottleneck, list(blocks), classes, zero_init_residual=True, width_per_group=width)
        self.normalize = Normalize()
        self.conv1 = nn.Conv2d(3, 64, 3, STEMS[stem], 1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()

    def forward(self, image):
        return super().forward(self.normalize(image))
