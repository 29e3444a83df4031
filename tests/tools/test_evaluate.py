"""tools.evaluate and tools.predict on checkpoints of runs and released ones."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.loader import evaluation_batches
from pipeline.views.presets import PRESETS
from shards.class_counts import CMO_RULE, shot_groups
from shards.reader import ShardSet
from tests.helpers.runs import COUNTS, make_data, options
from tests.helpers.shard_sets import photo, small_images
from tests.helpers.short_runs import make_run, take_steps
from tests.helpers.steps import context, unmixed
from tools import evaluate, predict
from train.checkpoints.files import save
from train.checkpoints.trained import Trained, load_trained
from train.inputs.input_builder import InputBuilder
from train.methods.glmc import GLMC, GLMCOptions
from train.methods.objectives.ncl import NCL, NCLOptions
from train.models.build import ModelOptions, build_model
from train.models.glmc import GLMCNetwork
from train.models.ncl import ContrastiveExperts, build_experts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def own(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run of two steps, as the trainer writes it."""
    folder = tmp_path_factory.mktemp("run")
    run = make_run(options(data, folder, max_steps=2, **{"method.loss": "bs"}))
    run.folder.checkpoints.prepare()
    take_steps(run)
    run.trainer.save_checkpoint()
    return next((folder / "checkpoints").glob("epoch*.pt"))


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "ckpt.best.pth.tar"
    state = build_model(ModelOptions(), len(COUNTS), "linear", seed=3).state_dict()
    state["linear.weight"] *= 1e-3  # else untrained logits are in the hundreds, and probabilities 0 or 1
    torch.save({"epoch": 200, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


@pytest.fixture(scope="module")
def released_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "best_ensemble_model.pth"
    state = build_experts(ModelOptions(), 2, lambda features: nn.Linear(features, len(COUNTS)), seed=3).state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_result": np.float64(0.5)}, path)
    return path


def logits(checkpoint: Path, dataset: ShardSet) -> np.ndarray:
    """One image after the other."""
    trained = load_trained(checkpoint, CPU)
    encoded = [dataset.encoded(sample).tobytes() for sample in range(len(dataset))]
    return np.stack([logits_of(trained, Image.open(io.BytesIO(data))) for data in encoded])


@torch.inference_mode()
def logits_of(trained: Trained, image: Image.Image) -> np.ndarray:
    pixels = np.array(image.convert("RGB"))
    return trained.logits(torch.from_numpy(pixels)[None])[0].numpy()


@pytest.mark.parametrize("kind", ["own", "released", "released_experts"])
def test_scores_are_those_of_the_network(
    kind: str, request: pytest.FixtureRequest, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint: Path = request.getfixturevalue(kind)
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps(list(COUNTS)))
    command = ["--checkpoint", str(checkpoint), "--data", str(data / "test"), "--train-counts"]
    assert evaluate.main([*command, str(data / "train"), "--out", str(tmp_path / "a"), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert evaluate.main([*command, str(counts), "--out", str(tmp_path / "b"), "--device", "cpu"]) == 0
    name = checkpoint.with_suffix("").name
    folders = [tmp_path / out / name for out in "ab"]
    first, second = (json.loads((folder / "scores.json").read_text()) for folder in folders)
    assert first == second
    test_set = ShardSet.open(data / "test")
    predicted = logits(checkpoint, test_set).argmax(axis=1)
    recall = np.array([(predicted[test_set.labels == c] == c).mean() for c in range(len(COUNTS))])
    assert first["test"]["all"] == pytest.approx(100 * (predicted == test_set.labels).mean())
    assert first["test"]["worst"] == pytest.approx(100 * recall.min())
    groups = shot_groups(np.array(COUNTS), CMO_RULE)
    assert first["test"]["few"] == pytest.approx(100 * recall[groups["few"]].mean())
    assert f"{first['test']['all']:.1f}" in printed
    assert first["group_rule"] == "many n >= 101, medium 20 <= n <= 100, few n <= 19"
    confusion = np.loadtxt(folders[0] / "confusion.csv", delimiter=",")
    expected = np.zeros_like(confusion)
    np.add.at(expected, (test_set.labels, predicted), 1)
    np.testing.assert_array_equal(confusion, expected)
    rows = list(csv.DictReader((folders[0] / "per_class.csv").open()))
    assert [float(row["recall"]) for row in rows] == pytest.approx((100 * recall).tolist(), abs=0.01)
    assert [int(row["train_samples"]) for row in rows] == list(COUNTS)
    for picture in ("confusion.png", "accuracy_by_class_size.png"):
        assert (folders[0] / picture).stat().st_size > 1000


@dataclass(frozen=True)
class Layout:
    """A network in the file of its authors: the classifiers that they evaluate, and the logits of those."""

    network: nn.Module
    classifiers: list[nn.Linear]
    logits: Callable[[Tensor], Tensor]
    recipe: str
    content: Callable[[dict[str, Tensor]], dict[str, Any]]


def glmc_layout() -> Layout:
    """`fc`, projection and prediction are left aside."""
    network = unmixed(GLMC, GLMCOptions(), context(COUNTS)).build_model(ModelOptions(width=8), seed=3)
    assert isinstance(network, GLMCNetwork)
    rebalanced = network.fc_cb

    def content(state: dict[str, Tensor]) -> dict[str, Any]:
        wrapped = {f"module.{name}": value for name, value in state.items()}
        return {"epoch": 200, "state_dict": wrapped, "best_acc1": torch.tensor(50.0)}

    return Layout(network, [rebalanced], lambda images: rebalanced(network.features(images)), "cifar", content)


def large_layout() -> Layout:
    """MetaSAug on large data sets: features and classifier apart, no counters of batches."""
    network = build_model(ModelOptions("resnet50"), len(COUNTS), "linear", seed=3)

    def content(state: dict[str, Tensor]) -> dict[str, Any]:
        parts: dict[str, dict[str, Tensor]] = {"feature": {}, "classifier": {}}
        for name in [name for name in state if not name.endswith("num_batches_tracked")]:
            parts["classifier" if name.startswith("fc.") else "feature"][name] = state[name]
        return {"epoch": 20, "state_dict": parts, "optimizer": {"state": {}}}

    return Layout(network, [network.get_submodule("fc")], network, "imagenet", content)


def contrastive_layout() -> Layout:
    """NCL's `classifier` are projections here; `classifier_ce` tell the classes."""
    options = NCLOptions(hard_classes=2, experts=2, contrastive=True, queue=16)
    network = unmixed(NCL, options, context(COUNTS)).build_model(ModelOptions(), seed=3)
    assert isinstance(network, ContrastiveExperts)
    pairs = list(zip(network.backbone, network.classifier_ce, strict=True))

    def logits(images: Tensor) -> Tensor:
        return torch.stack([head(backbone(images)) for backbone, head in pairs]).mean(dim=0)

    def content(state: dict[str, Tensor]) -> dict[str, Any]:
        return {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 400}

    return Layout(network, list(network.classifier_ce), logits, "cifar", content)


@pytest.mark.parametrize("make", [glmc_layout, large_layout, contrastive_layout])
@torch.no_grad()
def test_released_layouts_are_scored_with_the_classifier_of_their_authors(
    make: Callable[[], Layout], data: Path, tmp_path: Path
) -> None:
    layout, test_set = make(), ShardSet.open(data / "test")
    layout.network.eval()
    recipe = PRESETS[layout.recipe]
    (batch,) = evaluation_batches(test_set, recipe.evaluation, len(test_set), CPU, executor="reference")
    images = InputBuilder.create(recipe.normalization, CPU).plain(batch.images[0])
    logits = layout.logits(images)
    for classifier in layout.classifiers:  # else an untrained network says the same class for all images
        classifier.bias -= logits.mean(dim=0)
    predicted = (logits - logits.mean(dim=0)).argmax(dim=1)
    assert len(predicted.unique()) > 1
    torch.save(layout.content(layout.network.state_dict()), tmp_path / "released.pth")
    command = ["--checkpoint", str(tmp_path / "released.pth"), "--data", str(data / "test"), "--executor", "reference"]
    command += ["--train-counts", str(data / "train"), "--out", str(tmp_path), "--device", "cpu"]
    assert evaluate.main(command) == 0
    assert json.loads((tmp_path / "released" / "scores.json").read_text())["preset"] == layout.recipe
    expected = np.zeros((len(COUNTS), len(COUNTS)))
    np.add.at(expected, (batch.labels.numpy(), predicted.numpy()), 1)
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "released" / "confusion.csv", delimiter=","), expected)


def test_several_checkpoints_have_a_mean_and_post_hoc_corrections_change_the_ranking(
    own: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other" / own.name
    other.parent.mkdir()
    content = torch.load(own, weights_only=True)
    content["model"]["linear.bias"] += torch.tensor([0.0, 0.0, 0.0, 100.0])
    save(other, {key: value for key, value in content.items() if key != "format_version"})
    command = ["--checkpoint", str(own), str(other), "--data", str(data / "test"), "--device", "cpu"]
    command += ["--train-counts", str(data / "train"), "--out", str(tmp_path / "out")]
    assert evaluate.main(command) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "mean of 2" in table
    assert " ± " in table
    assert evaluate.main([*command, "--logit-adjustment", "1000"]) == 1
    assert "holds the numbers of another evaluation: logit_adjustment None, here 1000" in capsys.readouterr().err
    assert (tmp_path / "out" / "table.md").read_text() == table
    adjusted = [*command[:-1], str(tmp_path / "adjusted"), "--logit-adjustment", "1000"]
    assert evaluate.main(adjusted) == 0  # everything is the smallest class
    text = (tmp_path / "adjusted" / "table.md").read_text()
    assert " 25.0 ± 0.0 " in text
    assert "corrects it a second time" in text


def test_other_methods_are_not_averaged_and_a_prior_corrected_twice_is_a_warning(
    own: Path, released: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = ["--checkpoint", str(own), str(released), "--data", str(data / "test"), "--device", "cpu"]
    command += ["--train-counts", str(data / "train"), "--out"]
    assert evaluate.main([*command, str(tmp_path / "plain")]) == 0
    assert "| mean of" not in (tmp_path / "plain" / "table.md").read_text()
    assert "a second time" not in caplog.text
    assert evaluate.main([*command, str(tmp_path / "adjusted"), "--logit-adjustment", "1"]) == 0
    warnings = [message for message in caplog.messages if "corrects it a second time" in message]
    assert [str(own) in message for message in warnings] == [True]  # the released one has the plain cross entropy


def test_numbers_images_and_temperature_are_written(own: Path, data: Path, tmp_path: Path) -> None:
    command = ["--checkpoint", str(own), "--data", str(data / "test"), "--train-counts", str(data / "train")]
    command += ["--validation", str(data / "train"), "--out", str(tmp_path), "--device", "cpu"]
    assert evaluate.main(command) == 0
    folder = tmp_path / own.with_suffix("").name
    content = json.loads((folder / "scores.json").read_text())
    assert {"f1_macro", "auroc", "average_precision", "temperature", "calibration_error_scaled"} <= set(content["test"])
    assert content["meanings"].keys() >= {"f1_macro", "auroc", "temperature"}
    assert content["reliability"].keys() == {"before", "after"}
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    probabilities = torch.from_numpy(logits(own, ShardSet.open(data / "test"))).softmax(dim=1).numpy()
    assert [int(row["predicted"]) for row in rows] == probabilities.argmax(axis=1).tolist()
    assert [float(row["confidence"]) for row in rows] == pytest.approx(probabilities.max(axis=1).tolist(), abs=1e-4)
    labels = ShardSet.open(data / "test").labels
    expected = probabilities[np.arange(len(labels)), labels].tolist()
    assert [float(row["class_probability"]) for row in rows] == pytest.approx(expected, abs=1e-4)
    assert len({row["source"] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("[3, 2]", "numbers of classes differ"),
        ('{"many": 3}', "expected a list of positive counts"),
        ("[3, 0, 1, 1]", "expected a list of positive counts"),
        ("nothing", "not JSON"),
    ],
)
def test_wrong_counts_are_said(
    released: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], counts: str, message: str
) -> None:
    (tmp_path / "counts.json").write_text(counts)
    command = ["--checkpoint", str(released), "--data", str(data / "test"), "--out", str(tmp_path), "--device", "cpu"]
    assert evaluate.main([*command, "--train-counts", str(tmp_path / "counts.json")]) == 1
    assert message in capsys.readouterr().err


def test_predictions_for_files_and_folders(
    released: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures" / "deeper").mkdir(parents=True)
    paths = [tmp_path / "pictures" / "b.png", tmp_path / "pictures" / "deeper" / "a.jpg", tmp_path / "alone.png"]
    for seed, path in enumerate(paths):
        photo(seed, 32, 32).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    command = ["--checkpoint", str(released), "--device", "cpu", "--class-names", str(data / "test"), "--top", "3"]
    inputs = [str(tmp_path / "alone.png"), str(tmp_path / "pictures")]
    for name in ("found.json", "found.csv"):
        assert predict.main([*inputs, *command, "--batch-size", "2", "--out", str(tmp_path / name)]) == 0
    records = json.loads((tmp_path / "found.json").read_text())
    assert [record["image"] for record in records] == [str(paths[2]), str(paths[0]), str(paths[1])]
    trained = load_trained(released, CPU)
    for record in records:
        scores = logits_of(trained, Image.open(record["image"]))
        expected = np.exp(scores) / np.exp(scores).sum()
        order = np.argsort(-expected)[:3]
        assert [one["class"] for one in record["classes"]] == order.tolist()
        assert [one["name"] for one in record["classes"]] == [f"class {c}" for c in order]
        assert [one["probability"] for one in record["classes"]] == pytest.approx(expected[order].tolist(), abs=1e-5)
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    assert [(row["image"], int(row["class"])) for row in rows] == [
        (record["image"], one["class"]) for record in records for one in record["classes"]
    ]
    assert str(paths[0]) in capsys.readouterr().out


def test_a_file_that_is_no_image_is_said(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert predict.main([str(tmp_path / "broken.jpg"), "--checkpoint", str(released), "--device", "cpu"]) == 4
    assert "broken.jpg: not an image in a supported format" in caplog.text
    assert predict.main([str(tmp_path / "none"), "--checkpoint", str(released), "--device", "cpu"]) == 1
    assert "no such file or folder" in capsys.readouterr().err


def test_names_of_another_data_set_are_refused(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_images(tmp_path / "three", (1, 1, 1))
    photo(0, 32, 32).save(tmp_path / "a.png")
    command = [str(tmp_path / "a.png"), "--checkpoint", str(released), "--device", "cpu"]
    assert predict.main([*command, "--class-names", str(tmp_path / "three")]) == 1
    assert "has 3 classes, the network 4" in capsys.readouterr().err


def test_a_set_in_another_order_and_with_a_class_less_is_matched_by_name(own: Path, data: Path, tmp_path: Path) -> None:
    shuffled = tmp_path / "shuffled"
    opened = small_images(shuffled, (3, 4, 5))
    names = ("class 3", "class 0", "class 1")
    (shuffled / "dataset.json").write_text(replace(opened.info, class_names=names).to_json())
    command = ["--checkpoint", str(own), "--data", str(shuffled), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert evaluate.main(command) == 0  # the run knows its counts
    folder = tmp_path / "out" / own.with_suffix("").name
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["classes_without_images"] == ["class 2"]
    confusion = np.loadtxt(folder / "confusion.csv", delimiter=",")
    assert confusion.sum(axis=1).tolist() == [4, 5, 0, 3]
    expected = np.zeros_like(confusion)
    own_label = np.array([int(names[label][-1]) for label in opened.labels])
    np.add.at(expected, (own_label, logits(own, opened).argmax(axis=1)), 1)
    np.testing.assert_array_equal(confusion, expected)
    rows = list(csv.DictReader((folder / "per_class.csv").open()))
    assert [int(row["train_samples"]) for row in rows] == list(COUNTS)


def test_a_set_with_other_classes_is_refused(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    opened = small_images(other, (1, 1, 1, 1))
    names = ("class 0", "class 1", "class 2", "class_3")
    (other / "dataset.json").write_text(replace(opened.info, class_names=names).to_json())
    command = ["--checkpoint", str(own), "--data", str(other), "--device", "cpu", "--out", str(tmp_path / "out")]
    assert evaluate.main(command) == 1
    assert "1 of 4 classes of" in capsys.readouterr().err


def test_networks_of_different_methods_have_no_mean(own: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / own.name
    other.parent.mkdir()
    content = torch.load(own, weights_only=True)
    content["fit"]["method.loss"] = "ce"
    save(other, {key: value for key, value in content.items() if key != "format_version"})
    command = ["--checkpoint", str(own), str(other), "--data", str(data / "test"), "--device", "cpu"]
    assert evaluate.main([*command, "--out", str(tmp_path / "out")]) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| mean of" not in table
    assert "no mean over the checkpoints: they differ in method.loss" in table
