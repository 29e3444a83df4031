"""per_class.csv and predictions.csv: an evaluation's results per class and per image, with a header."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shards.class_counts import GroupRule, shot_groups
from shards.format import SOURCES_FILE
from shards.reader import ShardSet
from train.evaluation.details import Details
from train.evaluation.metrics import precision_recall_f1
from train.evaluation.scores import Predictions, Scores


def write_per_class(
    path: Path,
    dataset: ShardSet,
    training_counts: np.ndarray,
    rule: GroupRule,
    scores: Scores,
    details: Details | None,
    more: Mapping[str, np.ndarray] | None = None,
) -> None:
    """One row per class: name, group, training and test samples, and its numbers in percent; empty if undefined.

    Args:
        dataset: the evaluated set.
        details: AUROC and average precision; without it their columns are empty.
        more: further columns of shares (classes,), by title.
    """
    precision, recall, f1 = precision_recall_f1(scores.confusion)
    nothing = np.full(len(recall), np.nan)
    columns = {"recall": recall, "precision": precision, "f1": f1}
    columns["auroc"] = nothing if details is None else details.auroc
    columns["average_precision"] = nothing if details is None else details.average_precision
    columns |= more or {}
    groups = {number: name for name, members in shot_groups(training_counts, rule).items() for number in members}
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "group", "train_samples", "test_samples", *columns])
        for number, name in enumerate(dataset.class_names):
            shown = ["" if np.isnan(c[number]) else f"{100 * c[number]:.2f}" for c in columns.values()]
            counts = (training_counts[number], dataset.samples_per_class[number])
            writer.writerow([number, name, groups[number], *counts, *shown])


def write_predictions(path: Path, dataset: ShardSet, predictions: Predictions) -> None:
    """One row per image: its source, true and predicted class, and the network's confidence.

    confidence is the probability of the predicted class, class_probability that of the true one.
    """
    names, sources = dataset.class_names, _sources(dataset)
    columns = (predictions.labels, predictions.predicted, predictions.confidence, np.exp(-predictions.loss))
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["sample", "source", "class", "name", "predicted", "predicted_name", "confidence", "class_probability"]
        )
        rows = zip(sources, *(column.tolist() for column in columns), strict=True)
        for sample, (source, label, predicted, confidence, own) in enumerate(rows):
            shares = (f"{confidence:.6f}", f"{own:.6f}")
            writer.writerow([sample, source, label, names[label], predicted, names[predicted], *shares])


def _sources(dataset: ShardSet) -> list[str]:
    """Each image's source; empty strings if the set's list is missing, which nothing else needs."""
    path = dataset.folder / SOURCES_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.is_file() else []
    return lines if len(lines) == len(dataset) else [""] * len(dataset)
