"""`longtail.evaluate`: accuracy of a network on a shard set."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.loader import evaluation_batches
from shards.class_counts import GroupRule
from shards.reader import ShardSet
from train.checkpoints.trained import load_trained
from train.evaluation.scores import predict, score
from train.evaluation.test_prior import with_test_prior
from train.launch import device_of


@dataclass(frozen=True)
class Evaluation:
    """How well a network does.

    Attributes:
        numbers: metrics by name, accuracies in percent: "all", "many", "medium", "few", "balanced", …; None if there is
            no such class.
        class_names: in the order of the arrays.
        recall: float64 (classes,), share of each class's images classified correctly, 0 to 1; NaN if it has none.
        confusion: int64 (classes, classes), images by true and by predicted class.
    """

    numbers: dict[str, float | None]
    class_names: list[str]
    recall: np.ndarray
    confusion: np.ndarray

    def __repr__(self) -> str:
        shown = [name for name in ("all", "balanced", "many", "medium", "few") if self.numbers.get(name) is not None]
        return f"Evaluation({', '.join(f'{name} {self.numbers[name]:.1f}' for name in shown)})"


def evaluate(
    run_or_file: str | Path,
    data: str | Path | ShardSet,
    train: str | Path | ShardSet | None = None,
    *,
    many_min: int = 101,
    few_max: int = 19,
    crops: Literal[1, 5] = 1,
    test_prior: str | Sequence[float] = "uniform",
    weights: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 256,
) -> Evaluation:
    """Evaluate a run's best weights, or a checkpoint file, on every image of a shard set.

    Args:
        run_or_file: a run folder or a checkpoint.
        data: the set to evaluate on.
        train: the training set; its class sizes define many and few. By default those in the checkpoint.
        many_min, few_max: "many" has at least `many_min` training images, "few" at most `few_max`.
        crops: 5 averages the logits of five crops of each image, for presets that follow the backbone.
        test_prior: how often classes come where the network is used: "uniform", "train" (as in training), a list of
            counts or shares in the order of the classes, or a JSON file with one.
        weights: the pretrained weights of a tuned checkpoint, where they have moved.

    Raises:
        FileNotFoundError, ValueError: something is missing, damaged, or has other classes.
    """
    chosen = device_of(device)
    trained = load_trained(Path(run_or_file), chosen, weights=None if weights is None else Path(weights))
    dataset = _opened(data)
    counts = trained.samples_per_class if train is None else _opened(train).samples_per_class
    if counts is None:
        raise ValueError(f"{trained.path} has no class sizes: give the training set as train=")
    found = {str(trained.path): trained.classes, str(dataset.path): dataset.num_classes, "train": len(counts)}
    if len(set(found.values())) > 1:
        raise ValueError(f"numbers of classes differ: {', '.join(f'{n} in {what}' for what, n in found.items())}")
    trained = with_test_prior(trained, test_prior, counts)
    batches = evaluation_batches(dataset, trained.views(crops), batch_size, chosen)
    predictions = predict(trained.method, trained.model, batches, len(dataset), nullcontext)
    scores = score(predictions, counts, GroupRule(many_min, few_max))
    return Evaluation(dict(scores.numbers), dataset.class_names, scores.recall, scores.confusion)


def _opened(data: str | Path | ShardSet) -> ShardSet:
    return data if isinstance(data, ShardSet) else ShardSet.open(data)
