"""Checkpoint files of the official CMO, LDAM, GLMC and MetaSAug code: what they hold, and the network they belong to.

Such a file is a dictionary with a `state_dict` (the names of torchvision's ResNets or of ResNet-32, often behind the
"module." of a data-parallel wrapper) and little else; neither backbone nor number of classes is written down. Both
follow from the shapes. MetaSAug on large data sets and the classifier-balancing project, whose first stages it starts
from, keep features and classifier apart. GLMC has two classifiers, of which the re-balanced one is evaluated.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from train.models.build import ModelOptions, build_model
from train.models.resnet_stem32 import LAYOUTS as STEM32_LAYOUTS

_PREFIX = "module."
_INAT18_CLASSES = 8142
_GLMC_HEADS = ("fc.", "projection_head.", "contrast_head.")  # not needed to evaluate

# Blocks a stage, rows of the first block's first convolution, input channels a group of its second → timm's name.
_BACKBONES = {
    ((3, 4, 6, 3), 64, 64): "resnet50",
    ((3, 4, 23, 3), 64, 64): "resnet101",
    ((3, 8, 36, 3), 64, 64): "resnet152",
    ((3, 4, 6, 3), 128, 128): "wide_resnet50_2",
    ((3, 4, 6, 3), 128, 4): "resnext50_32x4d",
}
_RESNET32_BLOCKS = (5, 5, 5)


@dataclass(frozen=True)
class Architecture:
    """What the shapes of a checkpoint say: timm's name or resnet32, its first width, classes, and the classifier."""

    name: str
    width: int
    classes: int
    head: Literal["linear", "cosine"]

    def build(self) -> nn.Module:
        """The network."""
        return build_model(ModelOptions(name=self.name, width=self.width), self.classes, self.head, seed=0)


def state_dict_of(content: Any) -> dict[str, Tensor]:
    """The weights in what `train.checkpoint.read` found, names without the wrapper's prefix; other fields are ignored.

    Raises:
        ValueError: there are no weights in it.
    """
    state = None
    if isinstance(content, dict):
        state = content.get("state_dict", content.get("state_dict_best", content))
    if isinstance(state, dict) and all(isinstance(part, dict) for part in state.values()):
        state = {name: value for part in state.values() for name, value in part.items()}
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("expected a dictionary of tensors, alone or under the key 'state_dict'")
    return {name.removeprefix(_PREFIX): value for name, value in state.items()}


def as_plain_network(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that an evaluation needs, by the names of a network with one classifier.

    GLMC's re-balanced classifier takes the place of the only one. MetaSAug's batch norms have no counters of batches;
    with a momentum, as here, they mean nothing.
    """
    plain = dict(state)
    if "fc_cb.weight" in state:
        is_resnet32 = "layer1.0.conv1.weight" in state and "layer4.0.conv1.weight" not in state
        classifier = "linear" if is_resnet32 else "fc"
        plain = {name: value for name, value in state.items() if not name.startswith(("fc_cb.", *_GLMC_HEADS))}
        plain |= {f"{classifier}.{kind}": state[f"fc_cb.{kind}"] for kind in ("weight", "bias")}
    for name in [name for name in plain if name.endswith(".running_mean")]:
        plain.setdefault(f"{name.removesuffix('running_mean')}num_batches_tracked", torch.zeros((), dtype=torch.int64))
    return plain


def usual_recipe(state: dict[str, Tensor], architecture: Architecture) -> str:
    """Name of the recipe whose evaluation the authors of these weights used, as far as the weights say whose they are.

    Args:
        state: as `state_dict_of` gives them.
    """
    if architecture.name == "resnet32" or architecture.name in STEM32_LAYOUTS:
        if "fc_cb.weight" in state:
            return "cifar10-glmc" if architecture.classes == 10 else "cifar"
        return "cifar" if "bn1.num_batches_tracked" in state else "cifar-metasaug"
    return "inat" if architecture.classes == _INAT18_CLASSES else "imagenet"


def recognise(state: dict[str, Tensor]) -> Architecture:
    """The plain network that these weights are of.

    Raises:
        ValueError: they belong to none that we know.
    """
    blocks = tuple(len(_children(state, f"layer{stage}.")) for stage in (1, 2, 3, 4))
    if blocks == (*_RESNET32_BLOCKS, 0) and "linear.weight" in state:
        classes, head = _classifier(state, "linear", features=4 * len(state["conv1.weight"]))
        return Architecture("resnet32", len(state["conv1.weight"]), classes, head)
    stem32 = tuple(len(_children(state, f"conv{stage}_x.")) for stage in (2, 3, 4, 5))
    layout = (stem32, "conv2_x.0.residual_function.6.weight" in state)
    for name, known in STEM32_LAYOUTS.items():
        if layout == known and "fc.weight" in state:
            classes, head = _classifier(state, "fc", features=2048 if layout[1] else 512)
            return Architecture(name, ModelOptions.width, classes, head)
    first, second = (state.get(f"layer1.0.conv{number}.weight") for number in (1, 2))
    shape = (blocks, len(first), second.shape[1]) if first is not None and second is not None else None
    if shape not in _BACKBONES or "fc.weight" not in state:
        raise ValueError(
            f"no ResNet-32 and none of {', '.join([*_BACKBONES.values(), *STEM32_LAYOUTS])}: {blocks} blocks a stage, "
            f"{len(state)} tensors, the first of them {', '.join(list(state)[:3])}"
        )
    classes, head = _classifier(state, "fc", features=2048)
    return Architecture(_BACKBONES[shape], ModelOptions.width, classes, head)


def _children(state: dict[str, Tensor], prefix: str) -> set[str]:
    return {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}


def _classifier(state: dict[str, Tensor], name: str, features: int) -> tuple[int, Literal["linear", "cosine"]]:
    """A linear layer stores (classes, features) and a bias; the cosine classifier (features, classes) and none."""
    shape = tuple(state[f"{name}.weight"].shape)
    if f"{name}.bias" in state and shape[1:] == (features,):
        return shape[0], "linear"
    if f"{name}.bias" not in state and shape[:1] == (features,):
        return shape[1], "cosine"
    bias = "a" if f"{name}.bias" in state else "no"
    raise ValueError(f"{name}.weight has the shape {shape} with {bias} bias; neither linear nor cosine classifier")
