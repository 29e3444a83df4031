"""What the builder lets in, everything later takes: verification, training, evaluation and prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.format import SOURCES_FILE
from shards.reader import ShardSet
from tests.helpers.executors import assert_same_pictures, execute, plan_batches
from tests.helpers.image_kinds import kinds
from tests.helpers.runs import options, records
from tools import evaluate, predict
from tools.build_shards import main as build
from tools.verify_shards import main as verify
from train.checkpoints.trained import load_trained
from train.run import FINISHED, train

_VIEW = {"data.preset": "imagenet", "data.image_size": 32}  # takes images of all sizes


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with every kind of image in each."""
    folder = tmp_path_factory.mktemp("kinds") / "images"
    for label in ("one", "two"):
        kinds(folder / label)
    return folder


@pytest.fixture(scope="module")
def data(images: Path) -> Path:
    """A folder with the training and the test set of them, both the same."""
    for name in ("train", "test"):
        out = str(images.parent / name)
        assert build(["imagefolder", "--images", str(images), "--out", out, "--workers", "1"]) == 0
    return images.parent


@pytest.fixture(scope="module")
def run_dir(data: Path) -> Path:
    """A run of some steps that decodes with DALI."""
    folder = data / "run-dali"
    assert (
        train(options(data, folder, epochs=1, **{**_VIEW, "data.executor": "dali", "method.name": "vanilla"}))
        == FINISHED
    )
    return folder


def test_every_image_is_let_in_and_verified(images: Path, data: Path) -> None:
    names = (data / "train" / SOURCES_FILE).read_text(encoding="utf-8").splitlines()
    assert sorted(names) == sorted(str(path.relative_to(images)) for path in images.rglob("*.*"))
    assert verify([str(data / "train"), str(data / "test")]) == 0


@pytest.mark.parametrize("executor", ["dali", "reference"])
def test_training_takes_every_image(data: Path, executor: str) -> None:
    folder = data / f"run-cmo-{executor}"
    assert train(options(data, folder, epochs=1, **{**_VIEW, "data.executor": executor})) == FINISHED
    steps = [record for record in records(folder) if "loss" in record]
    assert len(steps) >= 2 and all(np.isfinite(record["loss"]) for record in steps)


@pytest.mark.parametrize("executor", ["dali", "reference"])
def test_evaluation_and_prediction_show_the_same_pictures(run_dir: Path, images: Path, executor: str) -> None:
    dataset, trained = ShardSet.open(images.parent / "test"), load_trained(run_dir, torch.device("cpu"))
    names = (dataset.folder / SOURCES_FILE).read_text(encoding="utf-8").splitlines()
    requests = plan_batches(dataset, [trained.preset.evaluation], [list(range(len(dataset)))])
    shown = [[np.stack([predict.evaluation_picture(images / name, trained) for name in names])]]
    assert_same_pictures(execute(executor, dataset, [trained.preset.evaluation], requests), shown)


@pytest.mark.parametrize("executor", ["auto", "dali", "reference"])
def test_evaluation_and_prediction_say_the_same(run_dir: Path, images: Path, tmp_path: Path, executor: str) -> None:
    command = ["--checkpoint", str(run_dir), "--device", "cpu", "--out"]
    out = tmp_path / "evaluation"
    data = ["--data", str(images.parent / "test"), "--executor", executor]
    assert evaluate.main([*data, *command, str(out)]) == 0
    assert predict.main([str(images), *command, str(tmp_path / "p.json")]) == 0
    found = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    right = np.mean([record["classes"][0]["name"] == Path(record["image"]).parent.name for record in found])
    assert len(found) == len(list(images.rglob("*.*")))
    (result,) = (json.loads(path.read_text(encoding="utf-8")) for path in out.rglob("scores.json"))
    assert result["test"]["all"] == pytest.approx(100 * right), result
