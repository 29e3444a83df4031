"""Fine-tuning on 300 images, from archive to table: python -m tools.benchmarks.finetune_cifar --images cifar10-jpeg.zip

Frozen EfficientNet-Lite0 at 160 pixels; 100, 67, … 3 training images per CIFAR-10 class, redrawn for each seed, and 60
test images per class. Linear classifier with cross entropy against a cosine classifier, initialised from class means,
with logit adjustment; each through build_shards, train, evaluate and predict. Takes minutes on two cores.
"""

import argparse
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.rng import generator
from tools.markdown import markdown
from train.evaluation.run_report import commit, hardware, versions
from train.evaluation.spread import mean_and_spread
from train.run_folder import write_json

LARGEST, SMALLEST, TEST_PER_CLASS = 100, 3, 60
GROUPS = {"3 largest": slice(0, 3), "4 middle": slice(3, 7), "3 smallest": slice(7, 10)}
COMMON = ["--method.name", "finetune", "--method.tuned", "head", "--method.cached_features", "true"]
COMMON += ["--data.preset", "backbone-plain", "--model.name", "tf_efficientnet_lite0", "--model.image_size", "160"]
COMMON += ["--epochs", "20", "--batch_size", "32", "--evaluate_every", "20", "--trackers", "[]", "--device", "cpu"]
COMMON += ["--schedule.kind", "cosine", "--schedule.warmup_epochs", "0", "--optimizer.weight_decay", "5e-4"]
HEADS = {
    "linear, CE": ["--method.loss", "ce", "--method.head", "linear", "--method.start", "random"],
    "cosine, class means, LA": ["--method.loss", "la", "--method.head", "cosine", "--method.start", "class_means"],
}
RATE = "0.03"  # LIFT's for a classifier alone


def class_counts(classes: int) -> list[int]:
    """Training images of each class, from the largest to the smallest in equal ratios, rounded down."""
    return [int(LARGEST * (SMALLEST / LARGEST) ** (k / (classes - 1)) + 1e-9) for k in range(classes)]


def extract(archive: Path, folder: Path, seed: int) -> None:
    """The training images of a seed in train-SEED, and the test images in test, as class folders."""
    with zipfile.ZipFile(archive) as images:
        names = sorted(name for name in images.namelist() if name.endswith(".jpg"))
        classes = sorted({name.split("/")[1] for name in names})
        for number, (name, count) in enumerate(zip(classes, class_counts(len(classes)), strict=True)):
            of_train = [n for n in names if n.startswith(f"train/{name}/")]
            drawn = generator(seed, "finetune_cifar/images", 0, number).permutation(len(of_train))[:count]
            parts = {f"train-{seed}": [of_train[i] for i in drawn]}
            parts["test"] = [n for n in names if n.startswith(f"test/{name}/")][:TEST_PER_CLASS]
            for part, chosen in parts.items():
                target = folder / part / name
                target.mkdir(parents=True, exist_ok=True)
                for member in chosen:
                    (target / Path(member).name).write_bytes(images.read(member))


def call(module: str, *arguments: str | Path) -> None:
    """Run one of this project's commands; its output is shown if it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def build(archive: Path, folder: Path, seed: int) -> None:
    """Build shards of a seed's training images and of the test images."""
    extract(archive, folder / "images", seed)
    for part in (f"train-{seed}", "test"):
        split = "test" if part == "test" else "train"
        shards = folder / part
        if not shards.exists():
            call(
                "tools.build_shards",
                "imagefolder",
                "--images",
                folder / "images" / part,
                "--split",
                split,
                "--out",
                shards,
            )


def run(folder: Path, name: str, seed: int, weights: Path) -> dict[str, Any]:
    """Train, evaluate and predict with one head on one seed; the accuracies in percent and the seconds of each."""
    train, test = folder / f"train-{seed}", folder / "test"
    run_dir = folder / "runs" / f"{name.replace(', ', '-').replace(' ', '-').lower()}-seed{seed}"
    data: list[str | Path] = ["--data.train", train, "--data.test", test, "--run_dir", run_dir, "--seed", str(seed)]
    options: list[str | Path] = [*COMMON, *HEADS[name], "--optimizer.lr", RATE, "--model.weights", weights]
    checkpoint, seconds = run_dir / "checkpoints" / "best.pt", {}
    started = time.monotonic()
    call("train", *options, *data)
    seconds["train"] = time.monotonic() - started
    started = time.monotonic()
    scores = run_dir / "evaluation"
    call("tools.evaluate", "--checkpoint", checkpoint, "--data", test, "--train-counts", train, "--out", scores)
    seconds["evaluate"] = time.monotonic() - started
    started = time.monotonic()
    pictures = folder / "images" / "test" / "cat"
    call("tools.predict", "--checkpoint", checkpoint, pictures, "--class-names", train, "--out", run_dir / "cats.json")
    seconds["predict"] = time.monotonic() - started
    (found,) = scores.glob("*/scores.json")
    confusion = np.loadtxt(found.parent / "confusion.csv", delimiter=",")
    recall = 100 * np.diag(confusion) / confusion.sum(axis=1)
    groups = {group: float(recall[members].mean()) for group, members in GROUPS.items()}
    return {"all": json.loads(found.read_text())["test"]["all"], **groups, "seconds": seconds}


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Mean ± standard deviation over the seeds."""
    columns = ("all", *GROUPS)
    rows = [[name, *(mean_and_spread([r[c] for r in runs]) for c in columns)] for name, runs in results.items()]
    return markdown(["head", "All", *GROUPS], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything, print the table and write it with all numbers as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmarks.finetune_cifar", description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="zip of JPEGs, SPLIT/CLASS/NUMBER.jpg")
    parser.add_argument("--folder", type=Path, default=Path("runs/finetune-cifar"), help="working folder (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="write all numbers as JSON")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    weights = options.folder / "lite0.safetensors"
    call("tools.lite0_weights", "--out", weights)
    for seed in options.seeds:
        build(options.images, options.folder, seed)
    results = {name: [run(options.folder, name, seed, weights) for seed in options.seeds] for name in HEADS}
    content = {
        "results": results,
        "seeds": options.seeds,
        "seconds": time.monotonic() - started,
        "class_counts": class_counts(10),
        "options": {name: [*COMMON, *head, "--optimizer.lr", RATE] for name, head in HEADS.items()},
        "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
    }
    if options.out is not None:
        write_json(options.out, content)
    print(table(results), f"\n{content['seconds']:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
