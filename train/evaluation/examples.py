"""Selects the images of an evaluation worth looking at, and makes thumbnails of them and of every class."""

import base64
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from shards.reader import ShardSet
from train.evaluation.scores import Scores
from train.run_folder import write_json

logger = logging.getLogger(__name__)

SHOWN_IMAGES = 24
_IMAGE_SIDE, _CLASS_SIDE = 128, 48
# Class thumbnails, at about 1.6 kB each in base64: a page of 1,000 classes has all of them.
_MAX_CLASS_PICTURES = 2000


def confident_mistakes(labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Wrong predictions with the highest confidence, highest first, at most SHOWN_IMAGES; int64 (shown,)."""
    wrong = np.flatnonzero(labels != predicted)
    return wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN_IMAGES]


def uncertain_hits(labels: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Correct predictions with the lowest confidence, lowest first, likewise."""
    right = np.flatnonzero(labels == predicted)
    return right[np.argsort(confidence[right], kind="stable")][:SHOWN_IMAGES]


def write_thumbnails(train_set: ShardSet, test_set: ShardSet, scores: Scores, path: Path) -> None:
    """thumbnails.json: JPEGs in base64, "samples" of the test set by id and "classes" by number.

    A class's thumbnail is its first training image. If there are too many classes, only the worst-recognised have one.
    """
    p = scores.predictions
    chosen = (
        confident_mistakes(p.labels, p.predicted, p.confidence),
        uncertain_hits(p.labels, p.predicted, p.confidence),
    )
    worst = np.argsort(np.nan_to_num(scores.recall), kind="stable")[:_MAX_CLASS_PICTURES]
    first = train_set.sample_ids_by_class[train_set.class_starts[:-1]]
    content: dict[str, Any] = {
        "samples": {str(sample): _jpeg(test_set, int(sample), _IMAGE_SIDE) for sample in np.concatenate(chosen)},
        "classes": {str(number): _jpeg(train_set, int(first[number]), _CLASS_SIDE) for number in sorted(worst)},
    }
    write_json(path, {kind: {key: jpeg for key, jpeg in found.items() if jpeg} for kind, found in content.items()})


def _jpeg(dataset: ShardSet, sample: int, side: int) -> str | None:
    """A sample within `side` pixels, as base64; None if it cannot be decoded, which the run has already reported."""
    try:
        with Image.open(io.BytesIO(dataset.encoded(sample).tobytes())) as image:
            image.draft("RGB", (2 * side, 2 * side))
            small = ImageOps.exif_transpose(image).convert("RGB")
    except OSError as error:
        logger.warning("%s: sample %d has no thumbnail: %s", dataset.path, sample, error)
        return None
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return base64.b64encode(buffer.getvalue()).decode()
