"""Folders of finished runs without training: any number of classes, any names, skewed predictions."""

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.class_counts import CMO_RULE, shot_groups

NASTY = (
    '<img src=x onerror="document.title=1">',
    "</script><b>bold</b>",
    'it\'s "quoted" & more',
    "Gebäude",
    "柴犬 · 秋田犬",
)


def class_names(classes: int) -> list[str]:
    """Markup, quotes, umlauts and CJK first, one very long name, then plain ones."""
    names = [*NASTY, "a very long name that goes on and on, longer than any column is wide, " * 2]
    return [*names, *(f"class {k}" for k in range(len(names), classes))][:classes]


def make_folder(
    folder: Path, classes: int, *, seed: int = 0, names: Sequence[str] | None = None, per_class: int = 3, **result: Any
) -> Path:
    """A run of `classes` classes; `result` replaces entries of result.json."""
    rng = np.random.default_rng(seed)
    names = class_names(classes) if names is None else names
    counts = np.maximum(2, (600 * 0.005 ** (np.arange(classes) / max(1, classes - 1))).astype(int))
    labels = np.repeat(np.arange(classes), per_class)
    skill = 0.25 + 0.65 * counts[labels] / counts.max()
    predicted = np.where(rng.random(len(labels)) < skill, labels, rng.integers(max(1, classes // 4), size=len(labels)))
    confidence = np.round(rng.uniform(1 / classes, 1, size=len(labels)), 4)
    folder.mkdir(parents=True)
    _write_result(folder, classes, seed, labels, predicted, counts, result)
    group = {number: name for name, members in shot_groups(counts, CMO_RULE).items() for number in members}
    with (folder / "per_class.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["recall", "precision", "f1", "auroc", "average_precision", "recall_best"]
        writer.writerow(["class", "name", "group", "train_samples", "test_samples", *columns])
        recall = np.bincount(labels[labels == predicted], minlength=classes) / per_class
        for number, name in enumerate(names):
            shares = [f"{100 * recall[number]:.2f}", "" if number == 1 else "50.00", "40.00", "70.00", "30.00", "60.00"]
            writer.writerow([number, name, group[number], counts[number], per_class, *shares])
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        numbers = ["confidence", "class_probability"]
        writer.writerow(["sample", "source", "class", "name", "predicted", "predicted_name", *numbers])
        for k, (true, guess) in enumerate(zip(labels, predicted, strict=True)):
            shares = [confidence[k], confidence[k] if true == guess else 0.01]
            writer.writerow([k, f"test/{names[true]}/{k}.jpg", true, names[true], guess, names[guess], *shares])
    samples = {str(k): _picture(rng, 64) for k in range(min(len(labels), 3000))}
    pictures = {"samples": samples, "classes": {str(k): _picture(rng, 32) for k in range(min(classes, 2000))}}
    (folder / "thumbnails.json").write_text(json.dumps(pictures))
    return folder


def _write_result(
    folder: Path,
    classes: int,
    seed: int,
    labels: np.ndarray,
    predicted: np.ndarray,
    counts: np.ndarray,
    changes: dict[str, Any],
) -> None:
    numbers = {"all": 100 * float((labels == predicted).mean()), "many": 70.0, "medium": None, "few": 12.5}
    numbers |= {"balanced": 40.0, "top5": 80.0, "f1_macro": 39.0, "f1_weighted": 41.0, "auroc": 90.0}
    numbers |= {
        "average_precision": 45.0,
        "calibration_error": 12.0,
        "calibration_error_scaled": 3.0,
        "temperature": 1.7,
    }
    bins = {"samples": [5] * 15, "confidence": [(k + 0.5) / 15 for k in range(15)]}
    reliability = {"before": {**bins, "accuracy": [k / 20 for k in range(15)]}}
    reliability["after"] = {**bins, "accuracy": [(k + 0.4) / 15 for k in range(15)]}
    data = {"name": "made", "samples": int(counts.sum()), "classes": classes, "imbalance_ratio": 200.0}
    content = {
        "test": {"last": {"epoch": 3, **numbers}, "best": {"epoch": 2, "selected_on": "validation", **numbers}},
        "reliability": reliability,
        "group_rule": CMO_RULE.describe(),
        "seconds": 61.2,
        "cost": {"images_per_second": 321.0, "peak_memory_gb": 1.5},
        "data": {
            "train": {**data, "split": "train", "checksum": "a" * 64},
            "test": {**data, "split": "test", "checksum": "b" * 64},
        },
        "replaced_samples": {"train": {"3": "truncated"}},
        "options": {
            "data": {"train": "data/<b>", "test": "data/test"},
            "epochs": 3,
            "seed": seed,
            "run_dir": str(folder),
        },
        "hardware": "CPU, 2 threads",
        "versions": {"python": "3.12", "torch": "2.11"},
        "commit": None,
        **changes,
    }
    (folder / "result.json").write_text(json.dumps(content))
    (folder / "status.json").write_text('{"outcome": "finished"}')
    (folder / "options.yaml").write_text("epochs: 3\n")
    records = [
        {
            "kind": "epoch",
            "epoch": epoch,
            "lr": 0.1 / (epoch + 1),
            "train": {"loss": 3.0 - epoch},
            "validation": {
                "all": 20.0 * epoch,
                "balanced": 15.0 * epoch,
                "many": 30.0,
                "medium": None,
                "few": 5.0,
                "loss": 2.5,
            },
        }
        for epoch in range(3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def _picture(rng: np.random.Generator, side: int) -> str:
    pixels = np.kron(rng.integers(255, size=(4, 4, 3), dtype=np.uint8), np.ones((side // 4, side // 4, 1), np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()
