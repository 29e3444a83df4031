"""From a model and an evaluation set to numbers: every image exactly once, on any number of processes.

Ranks evaluate disjoint samples and exchange one record per sample. No image is padded, repeated or counted twice, and
the numbers are plain functions of these records.
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
from train.evaluation.metrics import expected_calibration_error, f1_averages, precision_recall_f1
from train.losses.functions import cross_entropy
from train.methods.method import Method

# Logits of a whole evaluation set are kept up to this many values (2 GB; iNaturalist 2018 has 0.2 · 10^9).
MAX_LOGITS = 2**29
_GATHERED_BYTES = 64 * 2**20  # logits that ranks exchange at once


@dataclass(frozen=True)
class Predictions:
    """One record per evaluated sample, ordered by sample id; all arrays (samples,).

    labels, predicted int64; in_top5 bool (among the min(5, classes) highest); loss float32, the cross entropy of the
    raw logits; confidence float32, the softmax probability of the predicted class. members_correct bool (samples,
    members): whether each ensemble member alone is right; no columns if there is only one.
    logits float32 (samples, classes), on the first rank, if requested and not more than MAX_LOGITS.
    """

    labels: np.ndarray
    predicted: np.ndarray
    in_top5: np.ndarray
    loss: np.ndarray
    confidence: np.ndarray
    members_correct: np.ndarray
    logits: np.ndarray | None = None


@torch.inference_mode()
def predict(
    method: Method,
    model: nn.Module,
    batches: Iterable[Batch],
    samples: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    keep_logits: bool = False,
) -> Predictions:
    """Run the unwrapped model over this rank's batches and combine the records of all ranks.

    If a sample has several views, their logits are averaged.

    Args:
        keep_logits: also keep the logits of all samples, if they are few enough.

    Raises:
        ValueError: logits are not finite.
        RuntimeError: a sample was evaluated twice or not at all (a bug in this program, never in the data).
    """
    model.eval()
    ids, columns, kept = [], [], []
    for batch in batches:
        with autocast():
            first, *more = (
                method.objective.eval_members(model, method.context.input_builder.plain(images)).float()
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
        if keep_logits and samples * logits.shape[1] <= MAX_LOGITS:
            kept.append(logits.cpu().numpy())
    mine = torch.cat(columns).cpu().numpy() if columns else np.zeros((0, 5))
    all_ids, records = _gather(np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64), mine)
    if not np.array_equal(np.sort(all_ids), np.arange(samples)):
        raise RuntimeError(f"evaluated {len(all_ids)} records of {samples} samples: some twice or not at all")
    lost = int((~np.isfinite(records[:, 4])).sum())
    if lost:
        raise ValueError(
            f"the logits of {lost} of {samples} images are not finite: the weights are not, or float16 is too narrow "
            "for this network; leave out mixed_precision, or take bf16"
        )
    order = np.argsort(all_ids)
    labels, predicted, in_top5, losses, confidences, *members_correct = records[order].T
    return Predictions(
        labels.astype(np.int64),
        predicted.astype(np.int64),
        in_top5.astype(bool),
        losses.astype(np.float32),
        confidences.astype(np.float32),
        np.array(members_correct, dtype=bool).reshape(-1, samples).T,
        _gather_logits(kept, order) if keep_logits else None,
    )


def _gather(ids: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not dist.is_initialized():
        return ids, records
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (ids, records))
    filled = [part for part in parts if len(part[0])]  # a rank without samples does not know the number of columns
    return np.concatenate([p[0] for p in filled]), np.concatenate([p[1] for p in filled])


def _gather_logits(kept: list[np.ndarray], order: np.ndarray) -> np.ndarray | None:
    """The logits of all ranks in the given order, on the first rank. In pieces, because they go through GPU memory."""
    mine = np.concatenate(kept) if kept else np.zeros((0, 0), dtype=np.float32)
    if not dist.is_initialized():
        return mine[order] if kept else None
    world_size = dist.get_world_size()
    parts: list[list[np.ndarray]] = [[] for _ in range(world_size)]
    rows = max(1, _GATHERED_BYTES // max(1, mine.itemsize * mine.shape[1]))
    shapes: list[Any] = [None] * world_size
    dist.all_gather_object(shapes, (len(mine), rows))
    rows = min(own_rows for _, own_rows in shapes)  # a rank without samples does not know the number of classes
    for start in range(0, max(length for length, _ in shapes), rows):
        pieces: list[Any] = [None] * world_size
        dist.all_gather_object(pieces, mine[start : start + rows])
        if dist.get_rank() == 0:
            for part, piece in zip(parts, pieces, strict=True):
                part += [piece] if len(piece) else []
    found = [piece for part in parts for piece in part]
    return np.concatenate(found)[order] if found else None


@dataclass(frozen=True)
class Scores:
    """Numbers of one evaluation, accuracies in percent; None if a group has no class.

    `metrics.MEANINGS` explains each number. recall: float64 (classes,), NaN if the evaluation set has no sample of a
    class. confusion: int64 (classes, classes), rows are true classes. predictions: the scored predictions.
    """

    numbers: dict[str, float | None]
    recall: np.ndarray
    confusion: np.ndarray
    predictions: Predictions


def score(predictions: Predictions, samples_per_class: np.ndarray, rule: GroupRule) -> Scores:
    """Accuracy over all samples, and over classes with many, medium and few *training* samples.

    A group's accuracy is the unweighted mean of its classes' recalls, as in the published code.
    """
    classes = len(samples_per_class)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (predictions.labels, predictions.predicted), 1)
    _, recall, f1 = precision_recall_f1(confusion)
    f1_macro, f1_weighted = f1_averages(f1, confusion.sum(axis=1))
    correct = predictions.labels == predictions.predicted
    numbers: dict[str, float | None] = {
        "all": 100 * float(correct.mean()),
        **{name: mean_percent(recall[members]) for name, members in shot_groups(samples_per_class, rule).items()},
        "top5": 100 * float(predictions.in_top5.mean()),
        "balanced": mean_percent(recall),
        "worst": 100 * float(np.nanmin(recall)),
        "harmonic": 100 * _harmonic_mean(recall),
        "f1_macro": f1_macro,
        "f1_weighted": f1_weighted,
        "loss": float(predictions.loss.mean(dtype=np.float64)),
        "calibration_error": 100 * expected_calibration_error(predictions.confidence, correct),
        "samples": float(len(correct)),
        **_of_experts(predictions.members_correct),
    }
    return Scores(numbers, recall, confusion, predictions)


def _of_experts(members_correct: np.ndarray) -> dict[str, float | None]:
    """Accuracy of each ensemble member alone, and their mean, which unlike the best is not selected on this set."""
    alone = 100 * members_correct.mean(axis=0)
    if not len(alone):
        return {}
    return {**{f"expert{k}": float(one) for k, one in enumerate(alone)}, "experts_mean": float(alone.mean())}


def mean_percent(values: np.ndarray) -> float | None:
    """Mean over the classes that have a value, in percent; None if none has."""
    present = values[~np.isnan(values)]
    return 100 * float(present.mean()) if len(present) else None


def _harmonic_mean(recall: np.ndarray) -> float:
    """Harmonic mean over the classes of the evaluation set; 0 if any class is never recognised."""
    present = recall[~np.isnan(recall)]
    return len(present) / float((1 / present).sum()) if present.all() else 0.0
