"""ResNet-18, -34 and -50 with a stem for 32-pixel images, as in GLMC's code.

A 3×3 stem without pooling, four stages of strides 1, 2, 2, 2 and 64 to 512 channels; weights start as torch
initialises them. State-dict names of GLMC's checkpoints: conv1.{0,1}, conv{2..5}_x.{i}.shortcut.{0,1}, fc and
conv{2..5}_x.{i}.residual_function.{0,1,3,4[,6,7]}.
"""

from torch import Tensor, nn

# Blocks of each stage, and whether they are bottlenecks, by model name.
LAYOUTS = {
    "resnet18-stem32": ((2, 2, 2, 2), False),
    "resnet34-stem32": ((3, 4, 6, 3), False),
    "resnet50-stem32": ((3, 4, 6, 3), True),
}
_BOTTLENECK_EXPANSION = 4


def _conv_bn(in_planes: int, planes: int, size: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_planes, planes, size, stride, padding=size // 2, bias=False)
    return [conv, nn.BatchNorm2d(planes)]


class Block(nn.Module):
    """A basic block or a bottleneck (stride on the 3×3 convolution); its shortcut is a 1×1 convolution or nothing."""

    def __init__(self, in_planes: int, planes: int, stride: int, bottleneck: bool):
        super().__init__()
        out_planes = planes * _BOTTLENECK_EXPANSION if bottleneck else planes
        if bottleneck:
            self.residual_function = nn.Sequential(
                *_conv_bn(in_planes, planes, 1),
                nn.ReLU(),
                *_conv_bn(planes, planes, 3, stride),
                nn.ReLU(),
                *_conv_bn(planes, out_planes, 1),
            )
        else:
            self.residual_function = nn.Sequential(
                *_conv_bn(in_planes, planes, 3, stride), nn.ReLU(), *_conv_bn(planes, planes, 3)
            )
        changes_shape = stride != 1 or in_planes != out_planes
        self.shortcut = nn.Sequential(*(_conv_bn(in_planes, out_planes, 1, stride) if changes_shape else []))

    def forward(self, x: Tensor) -> Tensor:
        return (self.residual_function(x) + self.shortcut(x)).relu()


class ResNetStem32(nn.Module):
    """A ResNet for 32-pixel images; `name` is one of `LAYOUTS`."""

    classifier_name = "fc"

    def __init__(self, name: str, classes: int):
        super().__init__()
        blocks, bottleneck = LAYOUTS[name]
        self.conv1 = nn.Sequential(*_conv_bn(3, 64, 3), nn.ReLU())
        in_planes = 64
        for stage, count in enumerate(blocks):
            planes, layers = 64 * 2**stage, []
            for number in range(count):
                layers.append(Block(in_planes, planes, 2 if stage and not number else 1, bottleneck))
                in_planes = planes * (_BOTTLENECK_EXPANSION if bottleneck else 1)
            self.add_module(f"conv{stage + 2}_x", nn.Sequential(*layers))
        self.fc = nn.Linear(in_planes, classes)

    def maps(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) → (batch, channels, height / 8, width / 8), whose mean the classifier sees."""
        x = self.conv1(x)
        for stage in range(2, 6):
            x = self.get_submodule(f"conv{stage}_x")(x)
        return x

    def features(self, x: Tensor) -> Tensor:
        """(batch, 3, height, width) → (batch, channels of the last stage)."""
        return self.maps(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))
