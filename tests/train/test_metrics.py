"""Metrics equal scikit-learn's on random, skewed and degenerate predictions; calibration against loops."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from shards.class_counts import CMO_RULE
from train.evaluation.details import with_details
from train.evaluation.metrics import (
    MEANINGS,
    calibration_bins,
    expected_calibration_error,
    f1_averages,
    fit_temperature,
    precision_recall_f1,
    ranking_quality,
    softmax,
)
from train.evaluation.scores import Predictions, score

CASES = ("random", "skewed", "absent classes", "one class", "one image", "ties", "all wrong", "perfect")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """scikit-learn warns of classes without samples, which are the point here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def case(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 (samples, 6) and labels."""
    rng = np.random.default_rng(CASES.index(name))
    samples = 1 if name == "one image" else 200
    labels = rng.integers(6, size=samples)
    logits = rng.normal(size=(samples, 6)).astype(np.float32)
    logits[np.arange(samples), labels] += 1
    if name == "skewed":
        labels = rng.choice(6, size=samples, p=[0.7, 0.2, 0.05, 0.03, 0.01, 0.01])
        logits[:, 0] += 4
    elif name == "absent classes":
        labels[labels > 3] = 0
    elif name == "one class":
        labels[:] = 2
    elif name == "ties":
        logits = np.round(logits)
    elif name == "all wrong":
        logits[np.arange(samples), labels] = -20
    elif name == "perfect":
        logits[np.arange(samples), labels] = 20
    return logits, labels


def predictions(logits: np.ndarray, labels: np.ndarray) -> Predictions:
    probabilities = softmax(logits)
    own = probabilities[np.arange(len(labels)), labels]
    return Predictions(
        labels,
        probabilities.argmax(axis=1),
        np.ones(len(labels), dtype=bool),
        -np.log(np.maximum(own, 1e-30)),
        probabilities.max(axis=1),
        np.zeros((len(labels), 0), dtype=bool),
        logits,
    )


@pytest.mark.parametrize("name", CASES)
def test_numbers_equal_scikit_learns(name: str) -> None:
    logits, labels = case(name)
    found, details = with_details(
        score(predictions(logits, labels), np.array([300, 150, 90, 40, 15, 3]), CMO_RULE),
        np.array([300, 150, 90, 40, 15, 3]),
        CMO_RULE,
        None,
    )
    numbers, guesses, classes = found.numbers, softmax(logits).argmax(axis=1), range(6)
    assert numbers["balanced"] == pytest.approx(100 * sklearn.balanced_accuracy_score(labels, guesses))
    assert numbers["f1_macro"] == pytest.approx(100 * sklearn.f1_score(labels, guesses, average="macro"))
    assert numbers["f1_weighted"] == pytest.approx(100 * sklearn.f1_score(labels, guesses, average="weighted"))
    expected = sklearn.precision_recall_fscore_support(labels, guesses, labels=classes, zero_division=np.nan)
    for own, theirs in zip(precision_recall_f1(found.confusion), expected[:3], strict=True):
        np.testing.assert_allclose(own, theirs, equal_nan=True)
    probabilities = softmax(logits)
    for number in classes:
        is_class = labels == number
        if not is_class.any():
            assert np.isnan(details.auroc[number])
            assert np.isnan(details.average_precision[number])
            continue
        ap = sklearn.average_precision_score(is_class, probabilities[:, number])
        assert details.average_precision[number] == pytest.approx(ap, rel=1e-9)
        auroc = np.nan if is_class.all() else sklearn.roc_auc_score(is_class, probabilities[:, number])
        np.testing.assert_allclose(details.auroc[number], auroc, rtol=1e-9, equal_nan=True)
    groups = {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}
    for group, members in groups.items():
        values = details.average_precision[members]
        mean = None if np.isnan(values).all() else pytest.approx(100 * np.nanmean(values))
        assert numbers[f"average_precision_{group}"] == mean
    assert "temperature" not in numbers  # no validation set: nothing is fitted on the set that is reported
    assert all(value is None or np.isfinite(value) for value in numbers.values())


def test_a_class_that_only_the_predictions_have_counts_in_macro_f1_as_in_scikit_learn() -> None:
    confusion = np.array([[2, 1, 0], [0, 0, 0], [0, 0, 0]])
    _, _, f1 = precision_recall_f1(confusion)
    macro, weighted = f1_averages(f1, confusion.sum(axis=1))
    assert macro == pytest.approx(100 * sklearn.f1_score([0, 0, 0], [0, 0, 1], average="macro"))
    assert weighted == pytest.approx(100 * sklearn.f1_score([0, 0, 0], [0, 0, 1], average="weighted"))


def test_ranking_does_not_need_probabilities_and_takes_many_samples() -> None:
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(3, size=5000), rng.normal(size=(5000, 3)).round(2)
    auroc, average_precision = ranking_quality(scores, labels)
    for number in range(3):
        assert auroc[number] == pytest.approx(sklearn.roc_auc_score(labels == number, scores[:, number]))
        ap = sklearn.average_precision_score(labels == number, scores[:, number])
        assert average_precision[number] == pytest.approx(ap)


def test_the_temperature_that_was_applied_is_found_again_and_scaling_calibrates() -> None:
    rng = np.random.default_rng(0)
    logits = (2 * rng.normal(size=(4000, 5))).astype(np.float32)
    probabilities = softmax(logits)
    labels = np.array([rng.choice(5, p=p / p.sum()) for p in probabilities.astype(np.float64)])
    sharpened = 3 * logits
    half = len(labels) // 2
    assert fit_temperature(sharpened[:half], labels[:half]) == pytest.approx(3, rel=0.1)
    validation = predictions(sharpened[:half], labels[:half])
    scores = score(predictions(sharpened[half:], labels[half:]), np.full(5, 10), CMO_RULE)
    found, details = with_details(scores, np.full(5, 10), CMO_RULE, validation)
    before, after = found.numbers["calibration_error"], found.numbers["calibration_error_scaled"]
    assert before is not None
    assert after is not None
    assert after < before / 3
    assert details.temperature == found.numbers["temperature"]
    assert sum(details.reliability["after"]["samples"]) == half
    assert found.predictions.logits is None


def test_a_temperature_is_the_best_of_a_grid() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(300, 4)).astype(np.float32), rng.integers(4, size=300)
    logits[np.arange(300), labels] += 1.5

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(torch.tensor(logits / temperature), torch.tensor(labels)))

    assert loss(fit_temperature(logits, labels)) <= min(map(loss, np.geomspace(0.05, 20, 400))) + 1e-6


def test_reliability_bins_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(2)
    confidence, correct = rng.random(300).astype(np.float32) ** 4, rng.random(300) < 0.5
    bins = calibration_bins(confidence, correct)
    for number in range(15):
        inside = (confidence >= number / 15) & (confidence < (number + 1) / 15)
        assert bins["samples"][number] == inside.sum()
        if inside.any():
            assert bins["accuracy"][number] == pytest.approx(correct[inside].mean())
            assert bins["confidence"][number] == pytest.approx(confidence[inside].mean())
        else:
            assert np.isnan(bins["accuracy"][number])
    weighted = np.nansum(np.abs(bins["accuracy"] - bins["confidence"]) * bins["samples"]) / 300
    assert expected_calibration_error(confidence, correct) == pytest.approx(weighted)


def test_every_number_says_what_it_means_and_what_it_is_an_average_of() -> None:
    logits, labels = case("random")
    counts = np.array([300, 150, 90, 40, 15, 3])
    scored = score(predictions(logits, labels), counts, CMO_RULE)
    found, _ = with_details(scored, counts, CMO_RULE, predictions(logits, labels))
    for name in found.numbers.keys() - {"samples"}:
        plain = name.removesuffix("_many").removesuffix("_medium").removesuffix("_few")
        assert plain in MEANINGS, name
