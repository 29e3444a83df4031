"""Most of a pretrained ResNet is frozen, its last block and the classifiers are trained: as published on Places-LT.

MiSLAS (Zhong et al., CVPR 2021) freezes everything before the last block, in evaluation mode, and starts that block
afresh. PaCo (Cui et al., ICCV 2021) and GPaCo freeze the convolutions before it; batch normalisation is trained
everywhere, and its statistics move. Needs weights to start from.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from train.methods.base import MethodContext
from train.methods.parts import Mixing, Objective, Stage
from train.models.blocks import last_blocks
from train.models.build import ModelOptions
from train.models.tuning import set_modes


@dataclass(frozen=True)
class LastBlockOptions:
    """What else is trained.

    Args:
        frozen: what stays as it is before the last block: all, in evaluation mode, or the convolutions alone.
        fresh_block: start the last block from new weights.
    """

    frozen: Literal["all", "convolutions"] = "all"
    fresh_block: bool = False


class LastBlock(Stage):
    """The last block and what follows it are trained, and before it normalisation at most."""

    Options: ClassVar[type] = LastBlockOptions

    def __init__(self, options: LastBlockOptions, context: MethodContext):
        super().__init__(options, context)
        self.fixed: frozenset[str] = frozenset()  # names of parameters
        self.fresh: tuple[str, ...] = ()  # prefixes

    def check(self, options: ModelOptions) -> None:
        options.require_trained("this stage freezes most of a trained network")

    def refuses(self, mixing: Mixing, objective: Objective) -> str | None:
        if self.options.fresh_block and len(objective.views()) > objective.copies:
            return "a fresh block and its momentum copy would start differently; set fresh_block to false"
        return None

    def prepare(self, model: nn.Module, heads: tuple[str, ...]) -> None:
        super().prepare(model, heads)
        fixed: set[str] = set()
        blocks = last_blocks(model)
        for network, block in blocks.items():
            for name, module in model.get_submodule(network).named_modules(prefix=network):
                path = name.lstrip(".")
                before = not f"{path}.".startswith(f"{block}.") and not self.in_heads(f"{path}.")
                if before and (self.options.frozen == "all" or isinstance(module, nn.Conv2d)):
                    fixed |= {f"{path}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False)}
        self.fixed = frozenset(fixed)
        if self.options.fresh_block:
            names = [f"{block}." for block in blocks.values()]
            # State dicts leave the encoder's own name out.
            self.fresh = (*names, *(name.replace("encoder.", "") for name in names))
            for block in blocks.values():
                _start_afresh(model.get_submodule(block))

    def trainable(self, parameter_name: str) -> bool:
        return parameter_name not in self.fixed

    def inherits(self, parameter_name: str) -> bool:
        return not parameter_name.startswith(self.fresh) if self.fresh else True

    def set_mode(self, model: nn.Module) -> None:
        if self.options.frozen == "all":
            set_modes(model)


def _start_afresh(block: nn.Module) -> None:
    """torch's own initial weights: those of the code, which makes the block without the network's rules."""
    for module in block.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
