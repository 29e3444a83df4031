"""A method put together from a mixing, an objective and a stage."""

from collections.abc import Mapping, Sequence
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

import docstring_parser
import torch
from torch import Tensor, nn

from pipeline.mix_rule import MixRule
from pipeline.plan import Stream
from train.methods.base import ClassVectors, Method, MethodContext, MicroPlan, MicroStep, StepInputs, StepOutput
from train.methods.parts import Mixing, Objective, Part, Stage
from train.models.build import ModelOptions, part_seed

PartTypes = tuple[type[Mixing], type[Objective], type[Stage]]


class Composed(Method):
    """Streams and images of the mixing, network and loss of the objective, parameters of the stage.

    Raises:
        ValueError: the parts do not go together; the message gives the reason.
    """

    def __init__(self, options: Any, context: MethodContext, parts: PartTypes):
        super().__init__(options, context)
        mixing, objective, stage = parts
        self.mixing = mixing(_own(options, mixing), context)
        self.objective = objective(_own(options, objective), context)
        self.stage = stage(_own(options, stage), context)
        reason = self.objective.refuses(self.mixing) or self.stage.refuses(self.mixing, self.objective)
        if reason is not None:
            raise ValueError(
                f"method: {options.mixing} × {options.objective} × {options.stage} (mixing × objective × stage) is "
                f"refused: {reason}"
            )
        self.drop_last, self.accumulates = self.objective.drop_last, self.objective.accumulates
        self.not_captured_because = self.objective.not_captured_because
        # Each kind of state under a name of its own in a checkpoint.
        self._stateful: dict[str, Objective | Stage] = {"objective": self.objective, "stage": self.stage}

    def check_batch_size(self, batch_size: int) -> None:
        self.objective.check_batch_size(batch_size)

    # ------------------------------------------------------------------- a run

    def streams(self) -> tuple[Stream, ...]:
        return self.mixing.streams(self.objective.views())

    def mix_rule(self) -> MixRule | None:
        return self.mixing.mix_rule()

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        self.stage.check(options)
        model = self.objective.build_model(options, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(part_seed(seed, "stage"))
            return self.stage.prepare(model, self.objective.head_names(model))

    def trainable(self, parameter_name: str) -> bool:
        return self.objective.trainable(parameter_name) and self.stage.trainable(parameter_name)

    def inherits(self, parameter_name: str) -> bool:
        return self.stage.inherits(parameter_name)

    def requires(self, parameter_name: str) -> bool:
        return self.stage.requires(parameter_name)

    def stores(self, name: str) -> bool:
        return self.stage.stores(name)

    def rate_factor(self, parameter_name: str) -> float:
        return self.stage.rate_factor(parameter_name)

    def starts_from(self) -> ClassVectors | None:
        return self.stage.starts_from()

    def start(self, model: nn.Module, vectors: Tensor, known: Tensor) -> None:
        self.stage.start(model, vectors, known)

    def trained_alone(self) -> str | None:
        return self.stage.trained_alone()

    # ------------------------------------------------------------------ a step

    def values(self, plan: MicroPlan) -> StepInputs:
        values = {**self.mixing.inputs(plan), **self.objective.step_inputs(plan)}
        for stream, share in self.mixing.shares(plan).items():
            values |= self.objective.term_inputs(plan, stream, share)
        return values

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        self.stage.set_mode(model)
        objective = self.objective
        output = objective.forward(model, self.mixing.images(step, objective.copies), step)
        # The same order however a step was put together: sums of gradients round by it.
        streams = sorted(step.batches, key=lambda stream: (stream != "original", stream))
        first, *others = (objective.term(step, stream, output) for stream in streams)
        loss = sum(others, start=first)
        extra = objective.extra(step, output)
        rows = len(step.batches["original"].labels)  # the first copies
        return StepOutput(loss if extra is None else loss + extra, objective.prediction(output)[:rows])

    def before_optimizer(self, model: nn.Module) -> None:
        for part in self._stateful.values():
            part.before_optimizer(model)

    def project(self, model: nn.Module) -> None:
        self.stage.project(model)

    def after_epoch(self, epoch: int) -> None:
        self.objective.after_epoch(epoch)

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{kind}.{name}": value
            for kind, part in self._stateful.items()
            for name, value in part.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for kind, part in self._stateful.items():
            prefix = f"{kind}."
            part.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    # -------------------------------------------------------------- evaluation

    def eval_logits(self, model: nn.Module, images: Tensor) -> Tensor:
        return self.objective.eval_logits(model, images)

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        return self.objective.eval_members(model, images)

    def derived_options(self) -> dict[str, Any]:
        parts = (self.mixing, self.objective, self.stage)
        return {name: value for part in parts for name, value in part.derived_options().items()}


def _own(options: Any, part: type[Part]) -> Any:
    """The options of one part, out of those of all three."""
    return part.Options(**{f.name: getattr(options, f.name) for f in fields(part.Options)})


def composed_options(names: Mapping[str, str], parts: Sequence[type[Part]], defaults: Mapping[str, Any]) -> type:
    """One frozen dataclass with the options of three parts, for recipe and command line.

    Args:
        names: the parts by kind, which become options too: {"mixing": "paste", …}.
        parts: their types.
        defaults: options whose defaults differ from the part's own.
    """
    bases = tuple(part.Options for part in parts)
    types = {name: hint for base in bases for name, hint in get_type_hints(base).items()}
    unknown = set(defaults) - {f.name for base in bases for f in fields(base)}
    if unknown:
        raise ValueError(f"no part has the options {sorted(unknown)}")
    changed = [(name, types[name], field(default=value)) for name, value in defaults.items()]
    chosen = [(kind, str, field(default=name)) for kind, name in names.items()]

    def check_parts(self: Any) -> None:
        for base in bases:
            base(**{f.name: getattr(self, f.name) for f in fields(base)})

    namespace = {"__doc__": _documentation(names, bases), "__post_init__": check_parts}
    return make_dataclass("ComposedOptions", chosen + changed, bases=bases, namespace=namespace, frozen=True)


def _documentation(names: Mapping[str, str], bases: Sequence[type]) -> str:
    described = {kind: f"the {kind} of the method, see `longtail methods`." for kind in names}
    for base in bases:
        described |= {p.arg_name: p.description or "" for p in docstring_parser.parse(base.__doc__ or "").params}
    lines = [f"    {name}: {' '.join(text.split())}" for name, text in described.items()]
    return "\n".join([f"{' × '.join(names.values())}: what each of them lets one choose.", "", "Args:", *lines])
