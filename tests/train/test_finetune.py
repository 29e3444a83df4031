"""Whole runs of fine-tuning on a tiny random transformer: exact resume, small checkpoints, refusals."""

import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import longtail
from pipeline.executors import features as features_executor
from pipeline.loader import evaluation_batches
from shards.reader import ShardSet
from tests.helpers.pictures import photo
from tests.helpers.runs import ROOT, arguments, last_weights, options, same_weights
from tests.helpers.short_runs import make_run, take_steps
from tests.helpers.trainings import state_sha256
from tools import evaluate
from tools.predict import shown
from train.checkpoints.pretrained import find_pretrained
from train.checkpoints.trained import load_trained
from train.features import read_class_vectors, sample_per_class
from train.loop.trainer import NonFiniteLossError
from train.models.backbone_views import find_preset
from train.models.build import ModelOptions
from train.options import DataOptions, Options, parse
from train.run import FINISHED, train

NETWORK = "test_vit"  # timm's smallest transformer


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model(NETWORK, img_size=32).state_dict(), path)
    return path


def tune_options(data: Path, run_dir: Path, weights: Path, **changes: object) -> Options:
    values = {
        "method.name": "finetune",
        "model.name": NETWORK,
        "model.width": None,
        "model.image_size": 32,
        "model.weights": weights,
        "data.preset": "backbone-mda",
        "method.tuned": "lora",
        "epochs": 2,
        **changes,
    }
    return options(data, run_dir, **values)


VARIANTS = {
    "adamw and annealed squares": {"optimizer.kind": "adamw", "optimizer.lr": 1e-3, "optimizer.clip_norm": 1.0},
    "layers, steps, average": {
        "method.tuned": "bias",
        "optimizer.decay": "matrices",
        "optimizer.layer_decay": 0.7,
        "schedule.kind": "cosine",
        "schedule.per": "step",
        "schedule.warmup_epochs": 1,
        "ema_decay": 0.9,
    },
    "cached features": {
        "data.mean": "[0.4, 0.4, 0.3]",
        "method.tuned": "head",
        "method.cached_features": "true",
        "data.preset": "backbone-plain",
        "accumulation": 2,
    },
    "a loss scale": {"mixed_precision": "fp16", "method.tuned": "head", "data.preset": "backbone-plain"},
    "under CMO": {"method.mixing": "paste", "method.plain_first": 0, "method.plain_last": 0},
}


def newest(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("epoch*.pt"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_continues_exactly_and_keeps_what_was_tuned(
    variant: str, data: Path, weights: Path, tmp_path: Path
) -> None:
    changes = VARIANTS[variant]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train(tune_options(data, straight, weights, **changes)) == FINISHED
    assert train(tune_options(data, stopped, weights, **changes, max_steps=5)) == FINISHED
    assert train(tune_options(data, stopped, weights, **changes, resume="auto")) == FINISHED
    assert state_sha256(newest(straight)) == state_sha256(newest(stopped))
    kept = last_weights(straight)
    assert "head.weight" in kept and "patch_embed.proj.weight" not in kept
    assert newest(straight).stat().st_size < 0.3 * weights.stat().st_size
    trained = load_trained(straight / "checkpoints" / "best.pt", torch.device("cpu"))
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    assert trained.logits(images).isfinite().all()
    own_mean = (0.4, 0.4, 0.3) if "data.mean" in changes else (0.5, 0.5, 0.5)
    assert trained.preset.normalization.mean == own_mean and len(trained.preset.crops) == 5


@pytest.fixture(autouse=True)
def forget_features() -> None:
    features_executor._tables.clear()


def test_cached_features_give_what_the_network_gives(data: Path, weights: Path, tmp_path: Path) -> None:
    """But for the 16 bits that they are kept in; and a second run computes none."""
    data = shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("*-features"))
    common = {"method.tuned": "head", "data.preset": "backbone-plain", "optimizer.lr": 0.01}
    assert train(tune_options(data, tmp_path / "whole", weights, **common)) == FINISHED
    cached = {**common, "method.cached_features": "true"}
    assert train(tune_options(data, tmp_path / "cached", weights, **cached)) == FINISHED
    first, second = last_weights(tmp_path / "whole"), last_weights(tmp_path / "cached")
    assert first.keys() == second.keys() == {"head.weight"}
    torch.testing.assert_close(first["head.weight"], second["head.weight"], rtol=0, atol=2e-3)
    (table,) = (data / "train-features").glob("*.npy")
    written = table.stat().st_mtime_ns
    assert train(tune_options(data, tmp_path / "again", weights, **cached)) == FINISHED
    assert table.stat().st_mtime_ns == written
    assert same_weights(second, last_weights(tmp_path / "again"))
    whole = table.read_bytes()
    table.write_bytes(whole[:-100])  # as a full disk may leave it
    assert train(tune_options(data, tmp_path / "anew", weights, **cached)) == FINISHED
    assert table.read_bytes() == whole
    assert same_weights(second, last_weights(tmp_path / "anew"))


def test_class_means_do_not_depend_on_the_loader(data: Path, weights: Path, tmp_path: Path) -> None:
    """The start is the normalised mean of the features of each class, as a loop over the images finds it."""
    still = {"optimizer.lr": 0.0, "data.preset": "backbone-plain", "method.tuned": "head", "epochs": 1}
    assert train(tune_options(data, tmp_path / "run", weights, **still)) == FINISHED
    rows = last_weights(tmp_path / "run")["head.weight"]
    trained = load_trained(tmp_path / "run" / "checkpoints" / "best.pt", torch.device("cpu"))
    dataset = ShardSet.open(data / "train")
    network, sums = trained.model, torch.zeros_like(rows)
    for batch in evaluation_batches(dataset, trained.preset.train, 1, torch.device("cpu"), executor="reference"):
        x = trained.method.context.input_builder.plain(batch.images[0])
        with torch.no_grad():
            sums[batch.labels] += network.forward_head(network.forward_features(x), pre_logits=True)
    torch.testing.assert_close(rows, torch.nn.functional.normalize(sums), rtol=0, atol=2e-3)


def test_samples_of_class_means_are_capped_and_repeatable(data: Path) -> None:
    dataset = ShardSet.open(data / "train")
    ids = sample_per_class(dataset, 5, seed=3)
    assert np.array_equal(ids, sample_per_class(dataset, 5, seed=3))
    counts = np.bincount(dataset.index["label"][ids], minlength=4)
    assert counts.tolist() == np.minimum(dataset.samples_per_class, 5).tolist()


def test_class_vectors_of_a_file_must_be_of_these_classes(data: Path, weights: Path, tmp_path: Path) -> None:
    names = ShardSet.open(data / "train").class_names
    path = tmp_path / "vectors.npz"
    vectors = np.random.default_rng(0).normal(size=(len(names), 64)).astype(np.float32)
    np.savez(path, names=np.array(names), vectors=vectors)
    start = {"method.start": "file", "method.class_vectors": path, "optimizer.lr": 0.0, "epochs": 1}
    assert train(tune_options(data, tmp_path / "run", weights, **start)) == FINISHED
    rows = last_weights(tmp_path / "run")["head.weight"]
    torch.testing.assert_close(rows, torch.nn.functional.normalize(torch.from_numpy(vectors)))
    np.savez(path, names=np.array(names[::-1]), vectors=vectors)
    with pytest.raises(ValueError, match="the first that differs"):
        read_class_vectors(path, names)


def test_a_step_that_overflows_is_left_out_until_the_scale_gives_up(data: Path, weights: Path, tmp_path: Path) -> None:
    changes = {"mixed_precision": "fp16", "epochs": 8}
    run = make_run(tune_options(data, tmp_path / "one", weights, **changes, max_steps=1))
    scaler, head = run.trainer.parts.scaler, run.trainer.bare_model.get_parameter("head.weight")
    assert scaler is not None
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**40})
    before = head.detach().clone()
    take_steps(run)
    assert torch.equal(head, before) and scaler.get_scale() == 2.0**39

    run = make_run(tune_options(data, tmp_path / "all", weights, **changes, evaluate_every=8))
    with torch.no_grad():
        run.trainer.bare_model.get_parameter("head.weight").fill_(float("nan"))
    with pytest.raises(ValueError, match="logits of 12 of 12 images are not finite"):
        run.evaluator.selection_scores()
    run.folder.prepare({}, {})
    with run.make_loader() as loader, pytest.raises(NonFiniteLossError):
        run.trainer.run(loader)
    assert 17 <= run.trainer.done_steps < 32  # from 2^16 below 1, a factor of 2 at a time


def test_a_second_stage_on_a_tuned_network_needs_its_pretrained_weights(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    """Its checkpoint has none of them: without their file the new run would train on random features."""
    first = tmp_path / "first"
    assert train(tune_options(data, first, weights, **{"method.tuned": "bias", "epochs": 1})) == FINISHED
    second = {"method.name": "crt", "method.tuned": None, "model.init_from": first, "max_steps": 1}
    with pytest.raises(ValueError, match=r"none are given; give their file with --model\.weights"):
        train(tune_options(data, tmp_path / "second", weights, **second, **{"model.weights": None}))
    assert train(tune_options(data, tmp_path / "second", weights, **second)) == FINISHED
    tuned = last_weights(first)
    for name, value in last_weights(tmp_path / "second").items():
        assert name.startswith("head.") or name not in tuned or torch.equal(value, tuned[name]), name


@pytest.mark.parametrize("kind", ["head", "bias", "norm", "last_k", "full", "adaptformer", "adapter", "lora"])
@pytest.mark.parametrize("method", ["cmo", "cutmix", "mixup"])
def test_every_kind_is_tuned_under_every_mixing(
    method: str, kind: str, data: Path, weights: Path, tmp_path: Path
) -> None:
    mixing = {"method.name": method, "method.stage": "tune", "method.loss": "la", "max_steps": 2}
    mixing |= {} if method == "mixup" else {"method.plain_first": 0, "method.plain_last": 0}
    last_k = {"method.last_k": 1} if kind == "last_k" else {}
    run = make_run(tune_options(data, tmp_path / "run", weights, **{**mixing, **last_k, "method.tuned": kind}))
    before = {name: value.clone() for name, value in run.trainer.bare_model.named_parameters()}
    assert take_steps(run) == 2
    trained = {name for name, value in run.trainer.bare_model.named_parameters() if value.requires_grad}
    moved = {name for name, value in run.trainer.bare_model.named_parameters() if not torch.equal(value, before[name])}
    assert "head.weight" in moved and moved <= trained and (kind == "head") == (moved == {"head.weight"})


def test_one_crop_and_five_are_both_reported(data: Path, weights: Path, tmp_path: Path) -> None:
    """Side by side in one evaluation; in Python the same, by hand the mean of the logits and Bayes' rule."""
    run_dir, out = tmp_path / "run", tmp_path / "evaluation"
    assert train(tune_options(data, run_dir, weights, **{"method.tuned": "head", "epochs": 1})) == FINISHED
    command = ["--checkpoint", str(run_dir), "--data", str(data / "test"), "--out", str(out), "--device", "cpu"]
    assert evaluate.main([*command, "--crops", "1", "5", "--test-prior", "train"]) == 0
    table = (out / "table.md").read_text()
    assert table.index("One crop of each image") < table.index("The mean of the logits of five crops")
    found = {}
    for path in out.glob("*/scores.json"):
        content = json.loads(path.read_text())
        found[content["crops"]] = content["test"]
        assert "for the test prior train" in content["network"]
    for crops in (1, 5):
        here = longtail.evaluate(run_dir, data / "test", crops=crops, test_prior="train", device="cpu")
        assert here.numbers["loss"] == pytest.approx(found[crops]["loss"], rel=1e-4)
    assert found[1]["loss"] != found[5]["loss"]

    trained, shares = load_trained(run_dir, torch.device("cpu")), [0.7, 0.1, 0.1, 0.1]
    picture = photo(3, 50, 40)
    views = [torch.from_numpy(shown(picture, view).copy())[None] for view in trained.preset.crops]
    with torch.inference_mode():
        plain = torch.stack([trained.logits(view) for view in views]).mean(dim=0).softmax(dim=1)[0].numpy()
    expected = plain * shares / (plain * shares).sum()
    classifier = longtail.Classifier.load(run_dir, device="cpu", crops=5, test_prior=shares, weights=weights)
    np.testing.assert_allclose(classifier.probabilities(picture)[0], expected, rtol=1e-4)


def test_another_backbone_than_that_of_the_run_is_refused(data: Path, weights: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert train(tune_options(data, run_dir, weights, epochs=1)) == FINISHED
    other = tmp_path / "other.safetensors"
    torch.manual_seed(1)
    save_file(timm.create_model(NETWORK, img_size=32).state_dict(), other)
    with pytest.raises(ValueError, match="only the tuned tensors"):
        load_trained(run_dir / "checkpoints" / "best.pt", torch.device("cpu"), weights=other)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(weights.read_bytes())
    load_trained(run_dir / "checkpoints" / "best.pt", torch.device("cpu"), weights=moved)


@pytest.mark.parametrize(
    ("loss", "rule"), [("ce", "none"), ("focal", "none"), ("focal", "reweight"), ("ce", "inverse"), ("ldam", "drw")]
)
def test_every_loss_tunes(loss: str, rule: str, data: Path, weights: Path, tmp_path: Path) -> None:
    chosen = {"method.loss": loss, "method.rule": rule, "method.drw_from_epoch": 0, "max_steps": 2}
    run = make_run(tune_options(data, tmp_path / "run", weights, **chosen))
    before = {name: value.clone() for name, value in run.trainer.bare_model.named_parameters()}
    assert take_steps(run) == 2
    for name, value in run.trainer.bare_model.named_parameters():
        # The matrices below U, which starts at 0, get a gradient in the second step.
        assert value.isfinite().all() and torch.equal(value, before[name]) is not value.requires_grad, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.weights": None}, "start from one with --model.pretrained true"),
        ({"model.weights": "absent.safetensors"}, "is not a file"),
        ({"method.tuned": "head", "method.cached_features": "true"}, "choose data.preset backbone-plain"),
        ({"data.std": "[0.2, 0.2, 0.0]"}, "expected three numbers from 0 to 1, std above 0"),
        ({"data.preset": "cifar"}, "a preset that follows the backbone"),
        ({"model.name": "resnet18", "data.preset": "backbone"}, "choose one of head, bias, norm, last_k, full"),
        ({"model.name": "vit_tiny_patch16_224"}, "does not match the backbone"),
        ({"method.mixing": "mixup", "method.tuned": "head", "method.cached_features": "true"}, "is refused"),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(
    changes: dict[str, object], message: str, data: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(tune_options(data, tmp_path / "run", weights, **changes))


def test_another_size_is_an_option_of_the_network() -> None:
    with pytest.raises(ValueError, match=r"to change it use model\.image_size"):
        DataOptions("train", "test", preset="backbone", image_size=64)


def test_without_a_network_it_ends_at_once_and_says_which_file_to_fetch(tmp_path: Path) -> None:
    """The real command, before it looks at any data. In CPU time, as the machine may be busy: nothing is waited for."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and k != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}  # where nobody listens
    values = {"method.name": "finetune", "model.name": "test_vit.r160_in1k", "data.preset": "backbone-mda"}
    values |= {"model.pretrained": "true", "model.width": None}
    command = [sys.executable, "-m", "train", *arguments(tmp_path / "absent", tmp_path / "run", **values)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    output = ended.stdout
    assert ended.returncode == 1 and len(output.splitlines()) == 1, output
    assert re.search(
        r"pretrained: .*test_vit\.r160_in1k are not .*download model\.safetensors .*--model\.weights", output
    )
    assert not (tmp_path / "run").exists()


def no_route(*arguments: object, **kwargs: object) -> None:
    raise OSError("no route to host")


def no_answer(*arguments: object, **kwargs: object) -> None:
    time.sleep(60)


@pytest.mark.parametrize("lookup", [no_route, no_answer])
def test_a_network_that_does_not_answer_is_not_waited_for(
    lookup: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are looked up for minutes where a firewall drops the questions."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *arguments: None)
    monkeypatch.setattr("train.checkpoints.pretrained._HUB_SECONDS", 0.5)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"test_vit\.\S+ are not in the local cache.*--model\.weights FILE"):
        find_pretrained(ModelOptions(NETWORK, pretrained=True))
    assert time.monotonic() - started < 30


RECIPES = sorted((ROOT / "recipes").glob("*/finetune-*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_resolve(recipe: Path) -> None:
    """Their options fit each other, the tag of the weights is pinned, and the views are the backbone's."""
    resolved = parse(["--recipe", str(recipe)])
    assert "." in resolved.model.name
    preset = find_preset(resolved.data.preset, resolved.model)
    assert preset.train.size == preset.evaluation.size and preset.plain is not None and len(preset.crops) == 5
    assert resolved.schedule.for_epochs == resolved.run.epochs and resolved.schedule.warmup_epochs == 0
    expected = {"clip": 0.48145466, "augreg": 0.5, "dinov2": 0.485, "lite0": 0.5}[recipe.stem.removeprefix("finetune-")]
    assert preset.normalization.mean[0] == expected and preset.train.resampling == "bicubic"
