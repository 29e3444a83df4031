"""Classes of image files: python -m tools.predict --checkpoint FILE IMAGE|FOLDER … [--out predictions.csv|.json]"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.executors.pillow_reference import reference_view
from pipeline.views.view import plan_view
from shards.object_store import StoreError, set_location
from shards.reader import ShardSet
from tools.evaluate import read_train_counts
from train.checkpoints.trained import Trained, load_trained
from train.evaluation.test_prior import add_options, for_test_prior

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"})


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as given, and the image files below folders, sorted.

    Raises:
        FileNotFoundError: a path does not exist, or there is no image.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        below = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        found += below
    if not found:
        raise FileNotFoundError(f"no image ({', '.join(sorted(SUFFIXES))}) in {', '.join(map(str, paths))}")
    return found


def evaluation_picture(path: Path, trained: Trained) -> np.ndarray:
    """uint8 (height, width, 3): an image as the network is evaluated on it.

    Raises:
        ValueError: the file is no image that Pillow can decode.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
        plan = plan_view(trained.preset.evaluation, np.array([width]), np.array([height]), _draws_nothing)
        return reference_view(path.read_bytes(), plan, 0)
    except OSError as error:
        raise ValueError(f"{path}: not an image that can be decoded: {error}") from error


def _draws_nothing(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    raise AssertionError(f"an evaluation view draws {purpose!r}")


@torch.inference_mode()
def predictions(
    trained: Trained, images: Sequence[Path], names: Sequence[str], top: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    """For each image {"image", "classes": [{"class", "name", "probability"} … `top` of them, best first]}."""
    device = trained.method.context.device
    for start in range(0, len(images), batch_size):
        paths = images[start : start + batch_size]
        pixels = torch.from_numpy(np.stack([evaluation_picture(path, trained) for path in paths])).to(device)
        best = trained.logits(pixels).softmax(dim=1).topk(min(top, trained.classes))
        for path, values, classes in zip(paths, best.values.tolist(), best.indices.tolist(), strict=True):
            yield {
                "image": str(path),
                "classes": [
                    {"class": c, "name": names[c], "probability": round(p, 6)}
                    for c, p in zip(classes, values, strict=True)
                ],
            }


def write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """JSON, or CSV with one row for each image and rank."""
    if path.suffix == ".json":
        path.write_text(json.dumps(records, indent=2) + "\n")
        return
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "rank", "class", "name", "probability"])
        for record in records:
            for rank, one in enumerate(record["classes"], start=1):
                writer.writerow([record["image"], rank, one["class"], one["name"], one["probability"]])


def class_names(trained: Trained, dataset: Path | str | None) -> list[str]:
    """Names from a shard set; the numbers where none is given."""
    if dataset is None:
        return [str(number) for number in range(trained.classes)]
    names = ShardSet.open(dataset).class_names
    if len(names) != trained.classes:
        raise ValueError(f"{dataset} has {len(names)} classes, the network {trained.classes}; give its own data set")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the best class of each image; write all that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.predict", description=__doc__)
    add = parser.add_argument
    add("images", type=Path, nargs="+", metavar="IMAGE|FOLDER", help="files, or folders to search for images")
    add("--checkpoint", type=Path, required=True, metavar="FILE", help="of a run, or as released")
    add("--class-names", type=set_location, metavar="DIR|URL", help="shard set with the names of the classes")
    add_options(parser)
    add("--train-counts", type=set_location, metavar="DIR|URL|JSON", help="for --test-prior train")
    add("--preset", help="evaluation view and normalisation by name (default: the run's; the usual one for a release)")
    add("--top", type=int, default=5, help="classes an image in the file (default: 5)")
    add("--batch-size", type=int, default=64, help="images at once (default: 64)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="write .csv or .json")
    options = parser.parse_args(arguments)
    if options.out is not None and options.out.suffix not in (".csv", ".json"):
        parser.error(f"--out is {options.out}, expected a name that ends in .csv or .json")
    try:
        images = find_images(options.images)
        trained = load_trained(options.checkpoint, torch.device(options.device), options.preset, options.weights)
        counts = None if options.train_counts is None else read_train_counts(options.train_counts)
        trained = for_test_prior(trained, options.test_prior, counts)
        names = class_names(trained, options.class_names)
        records = []
        for record in predictions(trained, images, names, options.top, options.batch_size):
            best = record["classes"][0]
            print(f"{record['image']}\t{best['name']}\t{best['probability']:.4f}", flush=True)
            records.append(record)
    except (ValueError, FileNotFoundError, StoreError) as error:
        print(f"predict: error: {error}", file=sys.stderr)
        return 1
    if options.out is not None:
        write(options.out, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
