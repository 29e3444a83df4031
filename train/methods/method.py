"""A method: a mixing, an objective and a stage, combined for one run."""

from collections.abc import Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

import docstring_parser
from torch import nn

from train.methods.base import MethodContext, MicroStep, StepOutput
from train.methods.parts import Mixing, Objective, Part, Stage
from train.models.build import ModelOptions, part_seed, seeded

PartTypes = tuple[type[Mixing], type[Objective], type[Stage]]


class Method:
    """Three parts, and what involves more than one of them; for everything else a run uses the parts directly.

    Raises:
        ValueError: the parts cannot be combined; the message gives the reason.
    """

    def __init__(self, options: Any, context: MethodContext, parts: PartTypes):
        mixing, objective, stage = parts
        self.options, self.context = options, context
        self.mixing = mixing(_own(options, mixing), context)
        self.objective = objective(_own(options, objective), context, self.mixing)
        self.stage = stage(_own(options, stage), context)
        reason = self.objective.refuses() or self.stage.refuses(self.mixing, self.objective)
        if reason is not None:
            raise ValueError(
                f"method: {options.mixing} × {options.objective} × {options.stage} (mixing × objective × stage) is "
                f"refused: {reason}"
            )

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        """The network to train."""
        self.stage.check(options)
        model = self.objective.build_model(options, seed)
        with seeded(part_seed(seed, "stage")):
            self.stage.prepare(model, self.objective.head_names(model))
        return model

    def trainable(self, parameter_name: str) -> bool:
        """Whether a parameter of the network is trained."""
        return self.objective.trainable(parameter_name) and self.stage.trainable(parameter_name)

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        """Forward pass and this micro-batch's share of the loss."""
        self.stage.set_mode(model)
        return self.objective.loss(model, step)

    def derived_options(self) -> dict[str, Any]:
        """Values derived from the options, the length of the run and the network, printed and saved with the run."""
        parts = (self.mixing, self.objective, self.stage)
        return {name: value for part in parts for name, value in part.derived_options().items()}


def _own(options: Any, part: type[Part]) -> Any:
    """The options of one part, out of those of all three; options missing in a whole method keep their defaults."""
    names = (f.name for f in fields(part.Options))
    return part.Options(**{name: getattr(options, name) for name in names if hasattr(options, name)})


def composed_options(names: Mapping[str, str], parts: Sequence[type[Part]], defaults: Mapping[str, Any]) -> type:
    """One frozen dataclass with the options of three parts, for recipes and the command line.

    Args:
        names: the parts by kind, which become options too: {"mixing": "paste", …}.
        parts: their types.
        defaults: options whose defaults differ from the part's own.
    """
    bases = tuple(dict.fromkeys(part.Options for part in parts))
    types = {name: hint for base in bases for name, hint in get_type_hints(base).items()}
    changed = [(name, types[name], field(default=value)) for name, value in defaults.items()]
    chosen = [(kind, str, field(default=name)) for kind, name in names.items()]

    def check_parts(self: Any) -> None:
        for part in parts:
            _own(self, part)

    namespace = {"__doc__": _documentation(names, bases), "__post_init__": check_parts}
    return make_dataclass("ComposedOptions", chosen + changed, bases=bases, namespace=namespace, frozen=True)


def _documentation(names: Mapping[str, str], bases: Sequence[type]) -> str:
    described = {kind: f"the {kind} of the method, see `longtail methods`." for kind in names}
    for base in bases:
        described |= {p.arg_name: p.description or "" for p in docstring_parser.parse(base.__doc__ or "").params}
    lines = [f"    {name}: {' '.join(text.split())}" for name, text in described.items()]
    return "\n".join([f"{' × '.join(names.values())}: the options of each.", "", "Args:", *lines])
