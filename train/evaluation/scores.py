"""From a model and an evaluation set to numbers: every image exactly once, on any number of processes.

Ranks evaluate disjoint samples and exchange one record a sample, so no image is padded, repeated or averaged twice, and
the numbers are plain functions of those records.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pipeline.loader import Batch
from shards.class_counts import GroupRule, shot_groups
from train.losses.functions import cross_entropy
from train.methods.base import Method

CALIBRATION_BINS = 15  # Guo et al., ICML 2017


@dataclass(frozen=True)
class Predictions:
    """One record an evaluated sample, ordered by sample id; all arrays (samples,).

    labels, predicted int64; in_top5 bool (among the min(5, classes) highest); loss float32, the cross entropy of the
    raw logits; confidence float32, the softmax probability of the predicted class. members_correct bool (samples,
    members): whether each member of an ensemble is right by itself; without columns where there is only one.
    """

    labels: np.ndarray
    predicted: np.ndarray
    in_top5: np.ndarray
    loss: np.ndarray
    confidence: np.ndarray
    members_correct: np.ndarray


@torch.inference_mode()
def predict(
    method: Method,
    model: nn.Module,
    batches: Iterable[Batch],
    samples: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Predictions:
    """Run the unwrapped model over this rank's batches and put the records of all ranks together.

    Of several pictures of a sample, the logits are averaged.

    Raises:
        RuntimeError: a sample was evaluated twice or not at all (a fault of this program, never of the data).
    """
    model.eval()
    ids, columns = [], []
    for batch in batches:
        with autocast():
            first, *more = (
                method.eval_members(model, method.context.input_builder.plain(images)).float()
                for images in batch.images
            )
        members = torch.stack([first, *more]).mean(dim=0) if more else first
        logits = members.mean(dim=0)
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        in_top5 = (logits.topk(min(5, logits.shape[1])).indices == batch.labels[:, None]).any(dim=1)
        loss = cross_entropy(logits, batch.labels)
        record = [batch.labels, predicted, in_top5, loss, confidence]
        record += (members.argmax(dim=2) == batch.labels).unbind() if len(members) > 1 else []
        columns.append(torch.stack([column.double() for column in record], dim=1))
        ids.append(batch.sample_ids)
    mine = torch.cat(columns).cpu().numpy() if columns else np.zeros((0, 5))
    all_ids, records = _gather(np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64), mine)
    if not np.array_equal(np.sort(all_ids), np.arange(samples)):
        raise RuntimeError(f"evaluated {len(all_ids)} records of {samples} samples: some twice or not at all")
    labels, predicted, in_top5, losses, confidences, *members_correct = records[np.argsort(all_ids)].T
    return Predictions(
        labels.astype(np.int64),
        predicted.astype(np.int64),
        in_top5.astype(bool),
        losses.astype(np.float32),
        confidences.astype(np.float32),
        np.array(members_correct, dtype=bool).reshape(-1, samples).T,
    )


def _gather(ids: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not dist.is_initialized():
        return ids, records
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (ids, records))
    filled = [part for part in parts if len(part[0])]  # a rank without samples does not know the number of columns
    return np.concatenate([p[0] for p in filled]), np.concatenate([p[1] for p in filled])


@dataclass(frozen=True)
class Scores:
    """Numbers of one evaluation, accuracies in percent; None where a group has no class.

    recall: float64 (classes,), NaN where the evaluation set has no sample of a class. confusion: int64
    (classes, classes), rows are true classes.
    """

    numbers: dict[str, float | None]
    recall: np.ndarray
    confusion: np.ndarray


def score(predictions: Predictions, samples_per_class: np.ndarray, rule: GroupRule) -> Scores:
    """Accuracy over all samples and over classes of many, medium and few *training* samples.

    A group's accuracy is the unweighted mean of its classes' recalls, as in the published code.
    """
    classes = len(samples_per_class)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (predictions.labels, predictions.predicted), 1)
    totals = confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        recall = np.diag(confusion) / totals
    correct = predictions.labels == predictions.predicted
    numbers: dict[str, float | None] = {
        "all": 100 * float(correct.mean()),
        **{name: _mean_percent(recall[members]) for name, members in shot_groups(samples_per_class, rule).items()},
        "top5": 100 * float(predictions.in_top5.mean()),
        "balanced": _mean_percent(recall),
        "worst": 100 * float(np.nanmin(recall)),
        "harmonic": 100 * _harmonic_mean(recall),
        "loss": float(predictions.loss.mean(dtype=np.float64)),
        "calibration_error": 100 * expected_calibration_error(predictions.confidence, correct),
        "samples": float(len(correct)),
        **_of_experts(predictions.members_correct),
    }
    return Scores(numbers, recall, confusion)


def _of_experts(members_correct: np.ndarray) -> dict[str, float | None]:
    """Accuracy of each member of an ensemble alone, and their mean: unlike the best, not chosen by the evaluation."""
    alone = 100 * members_correct.mean(axis=0)
    if not len(alone):
        return {}
    return {**{f"expert{k}": float(one) for k, one in enumerate(alone)}, "experts_mean": float(alone.mean())}


def _mean_percent(recall: np.ndarray) -> float | None:
    present = recall[~np.isnan(recall)]
    return 100 * float(present.mean()) if len(present) else None


def _harmonic_mean(recall: np.ndarray) -> float:
    """Harmonic mean over the classes of the evaluation set; 0 as soon as one class is never recognised."""
    present = recall[~np.isnan(recall)]
    return len(present) / float((1 / present).sum()) if present.all() else 0.0


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their samples (Guo et al., eq. 3)."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=confidence.astype(np.float64) - correct, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(correct))
