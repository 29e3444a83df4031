"""The last residual block of each ResNet in a network."""

from torch import nn

from train.models.resnet_cifar import ResNet32
from train.models.resnet_stem32 import ResNetStem32


def last_blocks(model: nn.Module) -> dict[str, str]:
    """From the dotted name of each ResNet in a network to that of its last block.

    Raises:
        ValueError: there is none.
    """
    from timm.models.resnet import ResNet  # here, as it takes seconds: most runs do not need it

    last_stage = {ResNet: "layer4", ResNet32: "layer3", ResNetStem32: "conv5_x"}
    found = {}
    for name, module in model.named_modules():
        for kind, stage in last_stage.items():
            if isinstance(module, kind):
                path = f"{name}.{stage}".lstrip(".")
                blocks = model.get_submodule(path)
                assert isinstance(blocks, nn.Sequential)
                found[name] = f"{path}.{len(blocks) - 1}"
    if not found:
        raise ValueError("the network has no plain ResNet whose last block could be told from the others")
    return found
