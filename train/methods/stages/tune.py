"""Parameter-efficient tuning of a pretrained backbone (LIFT; Shi et al., ICML 2024): a new head and a few parameters.

The backbone is frozen and stays in evaluation mode, except for tuned parts. It needs weights to start from:
`--model.pretrained true`, `--model.weights FILE` or `--model.init_from CHECKPOINT`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from train.methods.base import ClassVectors, MethodContext
from train.methods.objectives.classifier import Classifier
from train.methods.parts import Mixing, Objective, Stage
from train.models.build import ModelOptions, replace_module
from train.models.heads import ScaledCosine, UnitLinear, set_class_vectors
from train.models.tuning import INSERTED, Kind, Tuning, insert, set_modes, tuned_names


@dataclass(frozen=True)
class TuneOptions:
    """What is trained, and how the classifier is initialised.

    Args:
        tuned: adaptformer, adapter or lora (modules in transformer blocks); bias, norm or full (of every block); last_k
            (the last blocks completely); head (only the classifier, which is always trained).
        last_k: only tune, or insert modules into, this many of the last blocks.
        bottleneck: width of the inserted modules; by default derived from the number of classes, as in LIFT+.
        head: cosine (with scale 25) or linear; losses with their own classifier, like ldam, keep it.
        start: class_means (the backbone's mean features of training images), file (class_vectors) or random.
        means_per_class: maximum number of images per class to average for class_means.
        class_vectors: .npz with `names` of the classes in order and `vectors` (classes, width), or `text` (classes, t)
            with `text_projection` (t, e) and `image_projection` (width, e).
        head_lr: factor on the classifier's learning rate.
        cached_features: compute the backbone's features once and train the head on them; requires tuned head and a
            preset without random augmentation, such as backbone-plain.
    """

    tuned: Kind = "adaptformer"
    last_k: int | None = None
    bottleneck: int | None = None
    head: Literal["cosine", "linear"] = "cosine"
    start: Literal["class_means", "file", "random"] = "class_means"
    means_per_class: int = 100
    class_vectors: Path | None = None
    head_lr: float = 1.0
    cached_features: bool = False

    def __post_init__(self) -> None:
        self.tuning()
        if (self.start == "file") != (self.class_vectors is not None):
            raise ValueError("method.start file requires method.class_vectors, and vice versa; give both or neither")
        if self.cached_features and self.tuned != "head":
            raise ValueError(
                f"method.cached_features needs a backbone that does not change, but method.tuned is {self.tuned}; "
                "choose head"
            )
        if self.means_per_class < 1 or self.head_lr <= 0:
            raise ValueError("method.means_per_class must be at least 1, and method.head_lr above 0")

    def tuning(self) -> Tuning:
        """The same, as the model's part of it."""
        return Tuning(self.tuned, self.last_k, self.bottleneck)


class Tune(Stage):
    """A frozen backbone with a few trained parameters and a classifier initialised from class vectors."""

    Options: ClassVar[type] = TuneOptions

    def __init__(self, options: Any, context: MethodContext):
        super().__init__(options, context)
        self.tuned: frozenset[str] = frozenset()
        self.tuned_buffers: tuple[str, ...] = ()
        self.bottleneck: int | None = None

    def check(self, options: ModelOptions) -> None:
        options.require_trained("this stage tunes parts of a trained network")

    def refuses(self, mixing: Mixing, objective: Objective) -> str | None:
        if not isinstance(objective, Classifier):
            return "the stage tune replaces the head of a network with one classifier; choose the objective classifier"
        if self.options.cached_features and mixing.mixes:
            return "cached features are computed from unmixed images; set cached_features to false"
        return None

    def prepare(self, model: nn.Module, heads: tuple[str, ...]) -> None:
        super().prepare(model, heads)
        self.bottleneck = insert(model, self.options.tuning(), len(self.context.samples_per_class))
        if type(model.get_submodule(heads[0])) is nn.Linear:
            replace_module(model, heads[0], ScaledCosine if self.options.head == "cosine" else UnitLinear)
        self.tuned = frozenset(n for n in tuned_names(model, self.options.tuning()) if not self.in_heads(n))
        modules = {name.rpartition(".")[0] for name in self.tuned}
        self.tuned_buffers = tuple(name for name, _ in model.named_buffers() if name.rpartition(".")[0] in modules)

    def trainable(self, parameter_name: str) -> bool:
        return parameter_name in self.tuned or self.in_heads(parameter_name)

    def inherits(self, parameter_name: str) -> bool:
        inserted = self.options.tuned in INSERTED and parameter_name in self.tuned
        return not inserted and not self.in_heads(parameter_name)

    def stores(self, name: str) -> bool:
        return self.trainable(name) or name in self.tuned_buffers

    def rate_factor(self, parameter_name: str) -> float:
        return self.options.head_lr if self.in_heads(parameter_name) else 1.0

    def starts_from(self) -> ClassVectors | None:
        o = self.options
        return None if o.start == "random" else ClassVectors(o.means_per_class, o.class_vectors)

    def start(self, model: nn.Module, vectors: Tensor, known: Tensor) -> None:
        set_class_vectors(model.get_submodule(self.heads[0]), vectors, known)

    def trained_alone(self) -> str | None:
        return self.heads[0] if self.options.cached_features else None

    def set_mode(self, model: nn.Module) -> None:
        set_modes(model)

    def derived_options(self) -> dict[str, Any]:
        return {} if self.bottleneck is None else {"bottleneck": self.bottleneck}
