"""Feature space augmentation, FSA (Chu et al., ECCV 2020): the second phase, rare classes recombined from two images.

A second phase: start it with `--model.init_from` from a plainly trained network. Its features are frozen, its
classifier goes on learning. Half of the rows of a step are images of the head, the largest classes that hold most of
the images; the others are images of the tail and rows made of one of them and of an image of a class that it is
confused with (`train.models.fsa`). Which classes these are follows from the scores of all images of the tail under the
first phase's network, whose classifier also makes the activation maps for the whole phase.

There is no released code: this is a reconstruction from the paper, which leaves thresholds, optimizer and batches open.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.head_and_tail import HeadImages, TailGroups, is_head
from pipeline.plan import Stream
from train.losses.class_statistics import sum_over_ranks
from train.losses.functions import cross_entropy
from train.methods.base import MethodContext, MicroPlan, MicroStep, ReadClasses, StepInputs, StepOutput
from train.methods.parts import Mixing, Objective
from train.methods.second_stage import SecondStage
from train.models.build import ModelOptions
from train.models.fsa import FSANetwork, Groups, build_fsa_network

logger = logging.getLogger(__name__)

TAIL = "tail"


def confused_with(
    scores: np.ndarray, classes: np.ndarray, number: int, allowed: np.ndarray | None = None
) -> np.ndarray:
    """The classes with the highest scores beside a class itself, highest first, equal ones by index; int64 (n, number).

    Args:
        scores: (n, classes), mean scores of the images of each of n classes.
        classes: int64 (n,), which classes those are.
        allowed: bool (classes,), those to choose from; by default all.
    """
    others = scores.copy()
    if allowed is not None:
        others[:, ~allowed] = -np.inf
    others[np.arange(len(classes)), classes] = -np.inf
    return np.argsort(-others, axis=1, kind="stable")[:, :number]


@dataclass(frozen=True)
class FSAOptions:
    """Head and tail, and how new rows are made.

    Args:
        head_share: the head are the largest classes that together hold this share of the images.
        partners: classes that a class of the tail is confused with, and new rows for each of its images in a step.
        confusing_from: all classes, or those of the head alone.
        tail_alike: draw all images of the tail alike, or all its classes. The paper's text can be read either way.
        specific_above: places with a higher activation are class-specific. Not published.
        generic_below: places with a lower activation are class-generic. Not published.
    """

    head_share: float = 0.9
    partners: int = 3
    confusing_from: Literal["all", "head"] = "all"
    tail_alike: Literal["images", "classes"] = "images"
    specific_above: float = 0.8
    generic_below: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.head_share < 1 or self.partners < 1:
            raise ValueError(
                f"method: head_share is {self.head_share}, partners {self.partners}; expected between 0 and 1, and at "
                "least 1"
            )
        for name in ("specific_above", "generic_below"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"method.{name} is {value}, expected from 0 to 1, as activations are")


class FSA(Objective):
    """A stream of the head, and one of groups of rows: an image of the tail, then its partners."""

    Options = FSAOptions
    own_stage = SecondStage
    drop_last = True
    surveys = True
    without: ClassVar[Mapping[str, str]] = {
        "mixup_prob": "new rows are mixed in feature space, from whole images; mix images in the first phase"
    }

    def __init__(self, options: FSAOptions, context: MethodContext, mixing: Mixing):
        super().__init__(options, context, mixing)
        self.head = is_head(context.samples_per_class, options.head_share)
        self.places = 0
        self.partners: Tensor  # int64 (classes, partners); rows of the head are zeros
        self.class_vectors: Tensor  # float32 (classes, features): the first phase's, for activation maps

    @property
    def group(self) -> int:
        """Rows of a group."""
        return 1 + int(self.options.partners)

    def check_batch_size(self, batch_size: int) -> None:
        if batch_size % self.group:
            raise ValueError(
                f"batch_size is {batch_size}, which groups of {self.group} rows (1 + method.partners) do not fill"
            )

    def streams(self) -> tuple[Stream, ...]:
        o, views = self.options, (self.context.view,)
        groups = TailGroups(self.partners.cpu().numpy(), o.head_share, o.tail_alike)
        return Stream("original", HeadImages(o.head_share), views), Stream(TAIL, groups, views)

    def build_model(self, options: ModelOptions, seed: int) -> nn.Module:
        network = build_fsa_network(options, self.classes, seed)
        self.places = network.places(self.context.view.size)
        return network

    # ------------------------------------------------------- before the first step

    @torch.no_grad()
    def survey(self, model: nn.Module, read: ReadClasses) -> None:
        assert isinstance(model, FSANetwork)
        tail = np.flatnonzero(~self.head)
        self._check_classes(len(tail))
        device = self.context.device
        row_of = torch.from_numpy(np.cumsum(~self.head) - 1).to(device)
        scores = torch.zeros(len(tail), len(self.head), dtype=torch.float64, device=device)
        for images, labels in read(tail):
            scores.index_add_(0, row_of[labels], self.prediction(model(images)).softmax(dim=1).double())
        (scores,) = sum_over_ranks([scores])
        counts = self.context.samples_per_class[tail, None]
        allowed = self.head if self.options.confusing_from == "head" else None
        partners = np.zeros((len(self.head), self.options.partners), dtype=np.int64)
        partners[tail] = confused_with(scores.cpu().numpy() / counts, tail, self.options.partners, allowed)
        self.partners = torch.from_numpy(partners)
        self.class_vectors = model.classifier.weight.detach().clone()
        logger.info(
            "%d classes of the head, %d of the tail; what they are confused with: by the scores of %d images",
            self.head.sum(),
            len(tail),
            counts.sum(),
        )

    def _check_classes(self, tail: int) -> None:
        if not tail:
            raise ValueError(
                f"no class is left for the tail: all {len(self.head)} are needed for method.head_share "
                f"{self.options.head_share} of the images; choose a smaller one"
            )
        others = int(self.head.sum()) if self.options.confusing_from == "head" else len(self.head) - 1
        if self.options.partners > others:
            raise ValueError(
                f"method.partners is {self.options.partners}, but a class of the tail has {others} others that it can "
                "be confused with"
            )

    def state_dict(self) -> dict[str, Tensor]:
        return {"partners": self.partners, "class_vectors": self.class_vectors}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.partners = state["partners"]
        self.class_vectors = state["class_vectors"].to(self.context.device)

    # ------------------------------------------------------------------ a step

    def values(self, plan: MicroPlan) -> StepInputs:
        if len(plan.positions) % self.group:
            raise ValueError(
                f"a micro-batch has {len(plan.positions)} rows, which groups of {self.group} (1 + method.partners) do "
                "not fill; change batch_size, accumulation or the number of processes"
            )
        drawn = plan.uniform("recombination", 1 + self.places)[plan.positions % self.group > 0]
        return {"from_own": np.floor(drawn[:, 0] * self.places + 0.5).astype(np.int64), "uniforms": drawn[:, 1:]}

    def loss(self, model: nn.Module, step: MicroStep) -> StepOutput:
        """The mean over the rows of both streams; those of a group have the label of its image of the tail."""
        head, tail = step.batches["original"], step.batches[TAIL]
        groups = Groups(
            self.group,
            self.class_vectors[tail.labels],
            step.values["from_own"],
            step.values["uniforms"],
            self.options.specific_above,
            self.options.generic_below,
        )
        images = torch.cat([head.images[0], tail.images[0]])
        _, logits = model(self.context.input_builder.plain(images), groups)
        rare = tail.labels.unflatten(0, (-1, self.group))[:, :1].expand(-1, self.group).flatten()
        losses = cross_entropy(logits, torch.cat([head.labels, rare]))
        loss = (losses * torch.cat([head.weights, tail.weights])).sum() / (2 * step.global_batch_size)
        return StepOutput(loss, logits[: len(head.labels)])

    def prediction(self, output: tuple[Tensor, Tensor]) -> Tensor:
        return output[1]

    def derived_options(self) -> dict[str, Any]:
        return {"head_classes": int(self.head.sum()), "tail_classes": int((~self.head).sum())}
