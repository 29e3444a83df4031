"""Classify images: python -m tools.predict --checkpoint FILE|RUN IMAGE|FOLDER|SET … [--out predictions.csv]

Unreadable files are skipped and listed; the exit status is then 4.
"""

import csv
import json
import logging
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from pipeline.executors.pillow_reference import picture_view
from pipeline.views.view import View, plan_view
from shards.class_names import class_ids
from shards.commandline import run_command, tell
from shards.format import DATASET_FILE
from shards.image_formats import IMAGE_SUFFIXES
from shards.images import as_rgb
from shards.reader import ShardSet
from tools.evaluate import read_train_counts
from tools.option_parsers import predict_parser
from train.checkpoints.trained import Trained, load_trained
from train.evaluation.test_prior import with_test_prior
from train.launch import device_of

logger = logging.getLogger(__name__)

SKIPPED = 4  # exit status: some files could not be read, all others were classified
_CLUTTER = ("__MACOSX", "@eaDir")  # left by file managers and network drives


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as given, and the image files below folders, sorted. The log counts other files in folders.

    Raises:
        FileNotFoundError: a path does not exist, or there is no image.
    """
    found: list[Path] = []
    left_out: Counter[str] = Counter()
    for path in paths:
        if path.is_dir():
            files = [p for p in sorted(path.rglob("*")) if not p.is_dir() and not _is_clutter(p.relative_to(path))]
            found += [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
            left_out.update(p.suffix.lower() or "no suffix" for p in files if p.suffix.lower() not in IMAGE_SUFFIXES)
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    if left_out:
        logger.warning("left out, not images by their suffix: %s", ", ".join(f"{n} {s}" for s, n in left_out.items()))
    if not found:
        raise FileNotFoundError(f"no image ({', '.join(sorted(IMAGE_SUFFIXES))}) in {', '.join(map(str, paths))}")
    return found


@dataclass(frozen=True)
class Encoded:
    """An image file or a sample of a shard set: its name, and its bytes on request."""

    name: str
    read: Callable[[], bytes]


def find_pictures(paths: Sequence[Path]) -> list[Encoded]:
    """The samples of shard sets, and the image files in files, folders and patterns such as `photos/*.jpg`.

    Raises:
        FileNotFoundError: a path does not exist, a pattern matches nothing, or there is no image.
    """
    found: list[Encoded] = []
    for path in paths:
        if (path / DATASET_FILE).is_file():
            dataset = ShardSet.open(path)
            found += [
                Encoded(f"{path}: {dataset.source_of(i)}", partial(_sample, dataset, i)) for i in range(len(dataset))
            ]
        else:
            matching = [path] if path.exists() else sorted(Path(path.anchor or ".").glob(_below_anchor(path)))
            found += [Encoded(str(file), file.read_bytes) for file in find_images(matching or [path])]
    return found


def _below_anchor(path: Path) -> str:
    return str(path.relative_to(path.anchor))


def _sample(dataset: ShardSet, sample: int) -> bytes:
    return bytes(dataset.encoded(sample))


def _is_clutter(path: Path) -> bool:
    return any(part.startswith(".") or part in _CLUTTER for part in path.parts)


def evaluation_picture(path: Path, trained: Trained) -> np.ndarray:
    """uint8 (height, width, 3): an image as prepared for evaluation, from the pixels that a shard set would hold.

    Raises:
        ValueError, OSError: the file is not an image that a shard set would accept, or cannot be read.
    """
    return shown(as_rgb(path.read_bytes()), trained.preset.evaluation)


def shown(pixels: np.ndarray, view: View) -> np.ndarray:
    """A view without randomness of RGB pixels: both uint8 (height, width, 3)."""
    height, width = pixels.shape[:2]
    plan = plan_view(view, np.array([width]), np.array([height]), _draws_nothing)
    return picture_view(Image.fromarray(pixels), plan, 0)


def _draws_nothing(purpose: str, shape: tuple[int, ...]) -> np.ndarray:
    raise AssertionError(f"an evaluation view draws {purpose!r}")


@torch.inference_mode()
def predictions(
    trained: Trained, images: Sequence[Encoded], names: Sequence[str], top: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    """For each image {"image", "classes": [{"class", "name", "probability"} … `top` of them, best first]}.

    An unreadable file gives {"image", "error"} instead.
    """
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        records: list[dict[str, Any]] = [{"image": image.name} for image in part]
        pictures = []
        for image, record in zip(part, records, strict=True):
            try:
                pictures.append(shown(as_rgb(image.read()), trained.preset.evaluation))
            except (ValueError, OSError) as error:
                record["error"] = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        found = iter(_best_classes(trained, pictures, names, top))
        for record in records:
            yield record if "error" in record else {**record, "classes": next(found)}


def _best_classes(
    trained: Trained, pictures: Sequence[np.ndarray], names: Sequence[str], top: int
) -> list[list[dict[str, Any]]]:
    if not pictures:
        return []
    pixels = torch.from_numpy(np.stack(pictures)).to(trained.method.context.device)
    best = trained.logits(pixels).softmax(dim=1).topk(min(top, trained.classes))
    return [
        [{"class": c, "name": names[c], "probability": round(p, 6)} for c, p in zip(classes, values, strict=True)]
        for values, classes in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


class PredictionFile:
    """JSON, JSON lines, or CSV with one row per image and rank; each prediction is written to the file at once.

    Args:
        kind: json, jsonl or csv.
    """

    def __init__(self, file: IO[str], kind: str):
        self._file, self._kind, self._records = file, kind, 0
        self._rows = csv.writer(file)
        if kind == "json":
            file.write("[")
        elif kind == "csv":
            self._rows.writerow(["image", "rank", "class", "name", "probability", "error"])

    def add(self, record: dict[str, Any]) -> None:
        """Write what `predictions` yields."""
        if self._kind == "jsonl":
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        elif self._kind == "json":
            text = json.dumps(record, indent=2).replace("\n", "\n  ")
            self._file.write(f"{',' if self._records else ''}\n  {text}")
        elif "error" in record:
            self._rows.writerow([record["image"], "", "", "", "", record["error"]])
        else:
            for rank, one in enumerate(record["classes"], start=1):
                self._rows.writerow([record["image"], rank, one["class"], one["name"], one["probability"], ""])
        self._records += 1
        self._file.flush()

    def finish(self) -> None:
        """Complete the file."""
        if self._kind == "json":
            self._file.write("\n]\n")


@contextmanager
def prediction_file(path: Path | None, overwrite: bool) -> Iterator[PredictionFile | None]:
    """The output file, created with its folder before any prediction; well-formed even if the block fails.

    Raises:
        FileExistsError: the file exists and may not be replaced.
    """
    if path is None:
        yield None
        return
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists; give another --out, or --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = PredictionFile(file, path.suffix.lower().removeprefix("."))
        try:
            yield writer
        finally:
            writer.finish()


def class_names(trained: Trained, dataset: Path | str | None) -> list[str]:
    """The network's class names: from its checkpoint; for a released one from a shard set, else numbers.

    Raises:
        ValueError: the shard set's classes are not those of the network.
    """
    found = None if dataset is None else ShardSet.open(dataset)
    if found is not None and found.num_classes != trained.classes:
        raise ValueError(
            f"{dataset} has {found.num_classes} classes, the network {trained.classes}; "
            "give the data set it was trained on"
        )
    if trained.class_names is not None:
        if found is not None:  # classes without samples must be the network's too
            everything = np.ones(found.num_classes, dtype=np.int64)
            class_ids(found.class_names, trained.class_names, everything, str(dataset), f"the network {trained.path}")
        return list(trained.class_names)
    if found is not None:
        return found.class_names
    logger.warning("%s: a released file has no class names; give them with --class-names", trained.path)
    return [f"class {number}" for number in range(trained.classes)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the best class of each image and write the requested file. Returns 4 if files were skipped."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    parser = predict_parser()
    options = parser.parse_args(arguments)
    if options.out is not None and options.out.suffix.lower() not in (".csv", ".json", ".jsonl"):
        parser.error(f"--out is {options.out}, expected a file name that ends in .csv, .json or .jsonl")
    return run_command("predict", lambda: _main(options))


def _main(options: Namespace) -> int:
    device = device_of(options.device)
    images = find_pictures(options.images)
    with prediction_file(options.out, options.overwrite) as file:
        trained = load_trained(options.checkpoint, device, options.preset, options.weights)
        counts = trained.samples_per_class
        if options.train_counts is not None:
            counts = read_train_counts(options.train_counts, trained)
        trained = with_test_prior(trained, options.test_prior, counts)
        names = class_names(trained, options.class_names)
        skipped = 0
        for record in predictions(trained, images, names, options.top, options.batch_size):
            if file is not None:
                file.add(record)
            if "error" in record:
                skipped += 1
                logger.warning("skipped %s: %s", record["image"], record["error"])
                continue
            best = record["classes"][0]
            line = f"{record['image']}\t{best['name']}\t{best['probability']:.4f}"
            if options.jsonl:
                line = json.dumps(record, ensure_ascii=False)
            if file is None:
                print(line, flush=True)  # only this line: if nobody reads the output any more, the work is done
            else:
                tell(line)
    if skipped:
        logger.warning("%d of %d files could not be read", skipped, len(images))
    return SKIPPED if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
