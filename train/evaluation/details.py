"""Results that need the probabilities of all classes: ranking quality, temperature scaling, reliability diagrams."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shards.class_counts import GroupRule, shot_groups
from train.evaluation.metrics import (
    calibration_bins,
    expected_calibration_error,
    fit_temperature,
    ranking_quality,
    softmax,
)
from train.evaluation.scores import Predictions, Scores, mean_percent


@dataclass(frozen=True)
class Details:
    """Additions to `Scores`; NaN if a class has no value.

    auroc, average_precision: float64 (classes,). temperature: fitted on the validation set, None without one.
    reliability: for the plain probabilities ("before") and, with a temperature, the scaled ones ("after"): the bins
    of `metrics.calibration_bins` as lists, None for means of empty bins.
    """

    auroc: np.ndarray
    average_precision: np.ndarray
    temperature: float | None
    reliability: dict[str, dict[str, list[Any]]]


def with_details(
    scores: Scores, samples_per_class: np.ndarray, rule: GroupRule, validation: Predictions | None
) -> tuple[Scores, Details]:
    """The same scores with more numbers, and the details behind them. Drops the logits afterwards: they are large.

    Args:
        scores: scores whose predictions include logits.
        samples_per_class: of the training set.
        validation: predictions with logits for fitting the temperature; None omits it.
    """
    predictions = scores.predictions
    assert predictions.logits is not None, "requested with the predictions"
    probabilities = softmax(predictions.logits)
    auroc, average_precision = ranking_quality(probabilities, predictions.labels)
    numbers = dict(scores.numbers)
    groups = shot_groups(samples_per_class, rule)
    for name, values in (("auroc", auroc), ("average_precision", average_precision)):
        numbers[name] = mean_percent(values)
        numbers |= {f"{name}_{group}": mean_percent(values[members]) for group, members in groups.items()}
    correct = predictions.labels == predictions.predicted
    reliability = {"before": _listed(calibration_bins(predictions.confidence, correct))}
    temperature = None
    if validation is not None and validation.logits is not None:
        temperature = fit_temperature(validation.logits, validation.labels)
        confidence = softmax(predictions.logits, temperature).max(axis=1)
        numbers["temperature"] = temperature
        numbers["calibration_error_scaled"] = 100 * expected_calibration_error(confidence, correct)
        reliability["after"] = _listed(calibration_bins(confidence, correct))
    details = Details(auroc, average_precision, temperature, reliability)
    return replace(scores, numbers=numbers, predictions=replace(predictions, logits=None)), details


def _listed(bins: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    return {
        name: [None if np.isnan(value) else round(float(value), 6) for value in values] for name, values in bins.items()
    }
