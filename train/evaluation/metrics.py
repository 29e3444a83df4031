"""Metrics other than accuracy, each with its meaning: F1, ranking quality, calibration. Plain functions of arrays.

If scikit-learn has a function of the same name, the values are equal. Averages are over images or over classes, as
stated in `MEANINGS`.
"""

import numpy as np
import torch

from train.losses.functions import cross_entropy

CALIBRATION_BINS = 15  # Guo et al., ICML 2017

# Titles of columns, in the order in which tables have them.
TITLES = {
    "All": "all",
    "Many": "many",
    "Medium": "medium",
    "Few": "few",
    "Balanced": "balanced",
    "Worst class": "worst",
    "Harmonic": "harmonic",
    "Top-5": "top5",
    "F1 macro": "f1_macro",
    "F1 weighted": "f1_weighted",
    "AUROC": "auroc",
    "AP": "average_precision",
    "ECE": "calibration_error",
    "ECE scaled": "calibration_error_scaled",
}
MEANINGS = {
    "all": "share of the test images that are classified correctly (average over images)",
    "many": "recall averaged over the classes with many training images (average over classes)",
    "medium": "recall averaged over the medium-sized classes (average over classes)",
    "few": "recall averaged over the classes with few training images (average over classes)",
    "top5": "share of the images whose class is among the five best guesses (average over images)",
    "balanced": "recall averaged over classes; equals accuracy if all classes have the same number of images",
    "worst": "recall of the worst class",
    "harmonic": "harmonic mean of the classes' recalls: 0 as soon as one class is never recognised",
    "f1_macro": "F1 (harmonic mean of precision and recall) averaged over classes",
    "f1_weighted": "F1 averaged over classes, weighted by their test images",
    "auroc": "how well a class's probability ranks its images above all others; 50 is chance (average over classes)",
    "average_precision": "area under the precision-recall curve of each class (average over classes)",
    "calibration_error": "mean gap between confidence and accuracy, 15 bins of equal width (average over images)",
    "calibration_error_scaled": "ECE after dividing the logits by one temperature, fitted on the validation set",
    "temperature": "that temperature: above 1 the network was overconfident, below 1 underconfident",
    "loss": "cross entropy of the plain logits (average over images)",
}
"""One line per entry of `Scores.numbers`; "<name>_many", "_medium" and "_few" are means over those classes."""


def precision_recall_f1(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 per class, float64 (classes,) each; NaN if the denominator is 0.

    Precision is NaN for a class that is never predicted, recall for one without samples, F1 if both are NaN.

    Args:
        confusion: int64 (classes, classes), rows are true classes.
    """
    correct, true, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return correct / predicted, correct / true, 2 * correct / (true + predicted)


def f1_averages(f1: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    """Macro and weighted F1 in percent, over the classes that occur among labels or predictions.

    Args:
        f1: from `precision_recall_f1`.
        samples: of each class in the evaluation set, (classes,).
    """
    weighted = np.average(np.nan_to_num(f1), weights=samples)
    return 100 * float(np.nanmean(f1)), 100 * float(weighted)


def ranking_quality(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision of each class against all others, float64 (classes,) each.

    AUROC is the share of pairs of an image of the class and another image that are ranked correctly, with ties counted
    as half; average precision is the sum of (R_n − R_{n−1}) P_n over the distinct thresholds, without interpolation.
    NaN for a class without samples; AUROC is also NaN if all samples are of the class.

    Args:
        probabilities: float (samples, classes), or any score that ranks the samples for a class.
        labels: int64 (samples,).
    """
    samples, classes = probabilities.shape
    auroc, average_precision = np.full(classes, np.nan), np.full(classes, np.nan)
    for number in np.unique(labels):
        scores = probabilities[:, number]
        own, ordered = np.sort(scores[labels == number]), np.sort(scores)
        others = samples - len(own)
        below, up_to = (np.searchsorted(ordered, own, side) for side in ("left", "right"))
        own_below, own_up_to = (np.searchsorted(own, own, side) for side in ("left", "right"))
        if others:
            wins = (below - own_below) + 0.5 * ((up_to - below) - (own_up_to - own_below))
            auroc[number] = wins.mean() / others
        average_precision[number] = ((len(own) - own_below) / (samples - below)).mean()
    return auroc, average_precision


def calibration_bins(confidence: np.ndarray, correct: np.ndarray) -> dict[str, np.ndarray]:
    """The reliability diagram: samples, mean confidence and accuracy of each equal-width bin, (15,) each.

    Means of empty bins are NaN.

    Args:
        confidence: float (samples,), in 0 to 1.
        correct: bool (samples,).
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    samples = np.bincount(bins, minlength=CALIBRATION_BINS)
    sums = [np.bincount(bins, values.astype(np.float64), CALIBRATION_BINS) for values in (confidence, correct)]
    with np.errstate(invalid="ignore"):
        return {"samples": samples, "confidence": sums[0] / samples, "accuracy": sums[1] / samples}


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by their samples (Guo et al., eq. 3)."""
    bins = calibration_bins(confidence, correct)
    gaps = np.abs(np.nan_to_num(bins["confidence"] - bins["accuracy"]))
    return float((gaps * bins["samples"]).sum() / len(correct))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T that minimises the cross entropy of logits / T (Guo et al., ICML 2017): convex in 1/T.

    Searched between 0.01 and 100; a network that is always right, or uninformative, gives one of the limits.

    Args:
        logits: float32 (samples, classes) of a validation set, never of the reported set.
        labels: int64 (samples,).
    """
    from scipy.optimize import minimize_scalar  # a third of a second that no training needs

    scores, targets = torch.from_numpy(logits), torch.from_numpy(labels)

    def loss(log_temperature: float) -> float:
        return float(cross_entropy(scores / float(np.exp(log_temperature)), targets).mean())

    limit = float(np.log(100.0))
    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-4}).x))


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities, float32 (samples, classes), from logits / temperature."""
    return torch.from_numpy(logits).div(temperature).softmax(dim=1).numpy()
