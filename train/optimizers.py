"""From options to an optimizer: parameter groups with their weight decay and learning-rate factor."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from train.options import OptimizerOptions

logger = logging.getLogger(__name__)

FACTOR = "rate_factor"  # key of a parameter group: factor on the scheduled learning rate
ADAMW_DESTROYS_ABOVE = 1e-3


def parameter_groups(
    model: nn.Module, options: OptimizerOptions, rate_factor: Callable[[str], float]
) -> list[dict[str, Any]]:
    """Groups of the trained parameters, each with weight decay and rate factor; a single group if all are equal.

    Layers and exemptions from weight decay follow timm; a layer's factor is multiplied by `rate_factor` of the
    parameter's name.
    """
    network: Any = model
    exempt = network.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    matrices = options.decay == "matrices"
    if options.layer_decay is not None:
        from timm.optim import param_groups_layer_decay

        groups = param_groups_layer_decay(
            model,
            weight_decay=options.weight_decay,
            no_weight_decay_list=exempt if matrices else (),
            weight_decay_exclude_1d=matrices,
            layer_decay=options.layer_decay,
        )
    elif matrices:
        from timm.optim import param_groups_weight_decay

        groups = param_groups_weight_decay(model, options.weight_decay, no_weight_decay_list=exempt)
    else:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [{"params": trained, "weight_decay": options.weight_decay}]
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return [part for group in groups for part in _by_factor(group, names, rate_factor)]


def _by_factor(
    group: dict[str, Any], names: dict[Tensor, str], rate_factor: Callable[[str], float]
) -> list[dict[str, Any]]:
    parts: dict[float, list[Tensor]] = {}
    for parameter in group["params"]:
        parts.setdefault(rate_factor(names[parameter]), []).append(parameter)
    scale = group.get("lr_scale", 1.0)  # timm's layer factor
    return [
        {"params": params, "weight_decay": group["weight_decay"], FACTOR: scale * factor}
        for factor, params in parts.items()
    ]


def make_optimizer(
    model: nn.Module,
    options: OptimizerOptions,
    rate_factor: Callable[[str], float],
    lr: float | Tensor,
    fused: bool,
) -> torch.optim.Optimizer:
    """The optimizer of a run, without frozen parameters.

    Args:
        model: the unwrapped network, because groups depend on its parameter names.
        lr: the base rate; a tensor if captured steps refer to it by address.
        fused: use one kernel for all parameters.
    """
    groups = parameter_groups(model, options, rate_factor)
    if len(groups) > 1 and isinstance(lr, Tensor):
        for group in groups:  # a separate one each, set by the schedule
            group["lr"] = lr.clone()
    if options.kind == "adamw":
        return torch.optim.AdamW(groups, lr, weight_decay=options.weight_decay, fused=fused)
    return torch.optim.SGD(
        groups, lr, options.momentum, weight_decay=options.weight_decay, nesterov=options.nesterov, fused=fused
    )


def warn_of_destructive_rate(options: OptimizerOptions, tunes_pretrained: bool) -> None:
    """Warn about rates known to destroy pretrained weights (such as Adam at 1e-2 on a pretrained transformer)."""
    if tunes_pretrained and options.kind == "adamw" and options.lr > ADAMW_DESTROYS_ABOVE:
        logger.warning(
            "optimizer.lr %g with adamw on pretrained parameters: rates above %g are known to destroy them; good "
            "starting points are 1e-3 for inserted modules and heads, 3e-5 for whole networks",
            options.lr,
            ADAMW_DESTROYS_ABOVE,
        )
