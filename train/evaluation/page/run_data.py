"""A page's data on one run, read from its folder; anything missing becomes a sentence, never an error."""

import base64
import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from train.evaluation.class_blocks import blocks_by_size, summed, worst_pairs
from train.evaluation.examples import confident_mistakes, uncertain_hits

GROUPS = ("many", "medium", "few")
_NUMBERS = ("recall", "precision", "f1", "auroc", "average_precision", "recall_best")
_PASTED_WIDTH = 1400
_CONFUSION_CLASSES = 20_000  # above this, the matrix would take more than 3 GB of memory

Found = TypeVar("Found")


@dataclass
class RunData:
    """A run as recorded in its folder.

    Attributes:
        name: of the folder. family: the name without its seed, equal for runs that differ only in their seed.
        result: result.json, empty if the run is not finished.
        shown: the data that the page's scripts draw, as plain containers for JSON.
        notes: a sentence for each missing item.
    """

    path: Path
    name: str
    family: str
    result: dict[str, Any]
    shown: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def reported(self) -> str:
        """The set that the results are of: "test", or "validation" in a run without a test set."""
        return "validation" if "test" not in self.result and "validation" in self.result else "test"

    @property
    def measured(self) -> dict[str, Any]:
        """The results of the last and the best weights, empty if there are none."""
        return self.result.get(self.reported, {})

    def read(self, file: str, reader: Callable[[Path], Found], without: str) -> Found | None:
        """A file in the folder; if it is missing or broken, None and a note on what the page lacks."""
        path = self.path / file
        if not path.is_file():
            self.notes.append(f"{file} is not in the run folder: {without}.")
            return None
        try:
            return reader(path)
        except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
            self.notes.append(f"{file} cannot be read ({type(error).__name__}: {error}): {without}.")
            return None


def read_run(path: Path) -> RunData:
    """Everything in a run folder that a page shows.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    if not any((path / name).is_file() for name in ("options.yaml", "result.json", "status.json")):
        raise FileNotFoundError(f"{path}: not a run folder: it has neither options.yaml nor result.json")
    name = path.resolve().name
    run = RunData(path, name, name, {}, {"name": name})
    run.result = run.read("result.json", _read_json, f"the run has no results yet{_status(path)}") or {}
    run.family = name.removesuffix(f"-seed{run.result.get('options', {}).get('seed')}")
    run.shown["curves"] = run.read("metrics.jsonl", _read_curves, "no curves") or []
    classes = run.read("per_class.csv", _read_classes, "no per-class numbers")
    if classes is None:
        return run
    run.shown["classes"] = classes
    predictions = run.read("predictions.csv", _read_predictions, "no confusion, mistakes or hits")
    if predictions is not None:
        run.shown |= _of_predictions(predictions, classes)
    thumbnails = run.read("thumbnails.json", _read_json, "no thumbnails of classes and images") or {}
    wanted = {str(card[0]) for kind in ("mistakes", "hits") for card in run.shown.get(kind, [])}
    samples = {key: jpeg for key, jpeg in thumbnails.get("samples", {}).items() if key in wanted}
    run.shown |= {"classPictures": thumbnails.get("classes", {}), "samplePictures": samples}
    run.shown["reliability"] = run.result.get("reliability")
    if (path / "pasted.png").is_file():
        run.shown["pasted"] = run.read("pasted.png", _as_jpeg, "no figure of pasted images")
    return run


def _status(path: Path) -> str:
    try:
        return f" (status: {json.loads((path / 'status.json').read_text(encoding='utf-8'))['outcome']})"
    except (OSError, ValueError, KeyError):
        return ""


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {type(content).__name__}")
    return content


def _read_curves(path: Path) -> list[dict[str, Any]]:
    """One record per epoch: number from 1, learning rate, losses, accuracies of the selection set."""
    curves = []
    for record in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        if record["kind"] != "epoch":
            continue
        split = next((name for name in ("validation", "test") if name in record), None)
        numbers = record[split] if split else {}
        kept = {name: numbers.get(name) for name in ("all", "balanced", *GROUPS)}
        curves.append(
            {
                "epoch": record["epoch"] + 1,
                "lr": record["lr"],
                "train loss": record["train"]["loss"],
                "split": split,
                "split loss": numbers.get("loss"),
                **kept,
            }
        )
    return curves


def _read_classes(path: Path) -> dict[str, list[Any]]:
    """Columns of per_class.csv by name, None for empty cells."""
    rows = _rows(path, ("name", "group", "train_samples", "test_samples", "recall"))
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in ("name", "group")}
    columns |= {name: [int(row[f"{name}_samples"]) for row in rows] for name in ("train", "test")}
    for name in _NUMBERS:
        columns[name] = [float(row[name]) if row.get(name) else None for row in rows]
    return columns


def _rows(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV file by header name.

    Raises:
        ValueError: a required column is missing.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = sorted(set(needed) - set(reader.fieldnames or ()))
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
        return list(reader)


def _read_predictions(path: Path) -> dict[str, Any]:
    columns = ("source", "class", "predicted", "confidence", "class_probability")
    rows = [tuple(row[name] for name in columns) for row in _rows(path, columns)]
    sources, labels, predicted, confidence, own = zip(*rows, strict=True) if rows else ((),) * 5
    return {
        "source": sources,
        "labels": np.array(labels, dtype=np.int64),
        "predicted": np.array(predicted, dtype=np.int64),
        "confidence": np.array(confidence, dtype=np.float64),
        "own": np.array(own, dtype=np.float64),
    }


def _of_predictions(predictions: dict[str, Any], classes: dict[str, list[Any]]) -> dict[str, Any]:
    """Galleries and confusion."""
    labels, predicted, confidence = (predictions[name] for name in ("labels", "predicted", "confidence"))

    def cards(samples: np.ndarray) -> list[list[Any]]:
        return [
            [
                int(k),
                predictions["source"][k],
                int(labels[k]),
                int(predicted[k]),
                round(float(confidence[k]), 4),
                round(float(predictions["own"][k]), 4),
            ]
            for k in samples
        ]

    found: dict[str, Any] = {
        "mistakes": cards(confident_mistakes(labels, predicted, confidence)),
        "hits": cards(uncertain_hits(labels, predicted, confidence)),
    }
    if len(classes["name"]) <= _CONFUSION_CLASSES:
        found |= _confusion(labels, predicted, classes)
    return found


def _confusion(labels: np.ndarray, predicted: np.ndarray, classes: dict[str, list[Any]]) -> dict[str, Any]:
    """Blocks of classes by size, the cells of the matrix that are not 0, and the worst pairs of classes."""
    count = len(classes["name"])
    matrix = np.zeros((count, count), dtype=np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    of_group = np.array(classes["group"])
    groups = {name: np.flatnonzero(of_group == name) for name in GROUPS}
    blocks = blocks_by_size(np.array(classes["train"]), groups)
    cells, totals = summed(matrix, blocks), matrix.sum(axis=1)
    sums = cells.sum(axis=1)
    return {
        "confusion": {
            "blocks": [[members.tolist()[0], members.tolist()[-1], len(members)] for members in blocks.members],
            "borders": list(blocks.borders),
            "cells": [
                [int(r), int(c), int(cells[r, c]), round(100 * float(cells[r, c]) / int(sums[r]), 2)]
                for r, c in np.argwhere(cells)
            ],
        },
        "pairs": [[t, p, n, round(100 * n / int(totals[t]), 1)] for t, p, n in worst_pairs(matrix)],
    }


def _as_jpeg(path: Path) -> str:
    """A figure of the run as JPEG in base64, no wider than needed."""
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((_PASTED_WIDTH, _PASTED_WIDTH))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
