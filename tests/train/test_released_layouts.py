"""Checkpoints in the layouts of the code of GLMC, MetaSAug, IB, BBN and PaCo: the right head, a start for others."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.steps import context, make_method, unmixed
from train.checkpoints.files import load_weights
from train.checkpoints.trained import load_trained
from train.methods.glmc import GLMC, GLMCOptions
from train.models.build import ModelOptions, build_model
from train.models.glmc import GLMCNetwork
from train.models.semantic import build_network

CPU = torch.device("cpu")
PICTURES = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def with_statistics(model: nn.Module) -> nn.Module:
    """A network whose batch norms are not those of the start."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def glmc_network(options: ModelOptions, classes: int, seed: int = 1) -> GLMCNetwork:
    method = unmixed(GLMC, GLMCOptions(), context([5] * classes))
    network = with_statistics(method.build_model(options, seed))
    assert isinstance(network, GLMCNetwork)
    return network


def check(path: Path, model: nn.Module, recipe: str) -> None:
    """The file gives the logits of the model, in the recipe that is right for it."""
    trained = load_trained(path, CPU)
    assert trained.preset.name == recipe
    images = trained.method.context.input_builder.plain(PICTURES)
    expected = model.evaluated_logits(images) if isinstance(model, GLMCNetwork) else model(images)
    torch.testing.assert_close(trained.logits(PICTURES), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "classes", "recipe"),
    [
        (ModelOptions("resnet32", width=8), 10, "cifar10-glmc"),
        (ModelOptions("resnet32", width=64), 100, "cifar"),
        (ModelOptions("resnet18-stem32"), 10, "cifar10-glmc"),
        (ModelOptions("resnet50-stem32"), 10, "cifar10-glmc"),
        (ModelOptions("resnext50_32x4d"), 20, "imagenet"),
        (ModelOptions("resnext50_32x4d"), 8142, "inat"),
    ],
    ids=lambda value: value.name if isinstance(value, ModelOptions) else str(value),
)
@torch.inference_mode()
def test_a_released_glmc_network_is_evaluated_with_its_rebalanced_classifier(
    tmp_path: Path, options: ModelOptions, classes: int, recipe: str
) -> None:
    network = glmc_network(options, classes)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "best_acc1": torch.tensor(1.0)}, tmp_path / "ckpt.best.pth.tar")
    check(tmp_path / "ckpt.best.pth.tar", network, recipe)


@torch.inference_mode()
def test_a_glmc_network_without_the_other_heads_is_evaluated_too(tmp_path: Path) -> None:
    network = glmc_network(ModelOptions("resnet32", width=8), 100)
    unused = ("fc.", "projection_head.", "contrast_head.")
    state = {name: value for name, value in network.state_dict().items() if not name.startswith(unused)}
    torch.save({"state_dict": state}, tmp_path / "ckpt.pth.tar")
    check(tmp_path / "ckpt.pth.tar", network, "cifar")


@torch.inference_mode()
def test_a_released_metasaug_network_has_no_batch_counters(tmp_path: Path) -> None:
    network = with_statistics(build_model(ModelOptions(), 100, "linear", seed=1))
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    assert len(state) == 157
    content = {"epoch": 186, "state_dict": state, "best_acc1": 48.0, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "ckpt.pth")
    check(tmp_path / "ckpt.pth", network, "cifar-metasaug")


def large_network() -> tuple[nn.Module, dict[str, dict[str, Tensor]]]:
    """A network, and its weights as MetaSAug on large data sets stores them."""
    network = with_statistics(build_model(ModelOptions("resnet50"), 12, "linear", seed=1))
    parts: dict[str, dict[str, Tensor]] = {"feature": {}, "classifier": {}}
    for name, value in network.state_dict().items():
        if "num_batches" not in name:
            parts["classifier" if name.startswith("fc.") else "feature"][name] = value
    assert len(parts["feature"]) == 265
    return network, parts


@torch.inference_mode()
def test_a_released_large_network_keeps_features_and_classifier_apart(tmp_path: Path) -> None:
    network, parts = large_network()
    torch.save({"epoch": 20, "state_dict": parts, "optimizer": {"state": {}}}, tmp_path / "epoch_20.checkpoint")
    check(tmp_path / "epoch_20.checkpoint", network, "imagenet")


@pytest.mark.parametrize("prefix", ["", "module."])  # with and without --gpu
def test_a_released_ib_network_is_a_plain_one_beside_its_optimizer(tmp_path: Path, prefix: str) -> None:
    """That its forward pass also gives the norm of the features leaves no trace in the file."""
    network = with_statistics(build_model(ModelOptions(), 100, "linear", seed=1))
    optimizer = torch.optim.SGD(network.parameters(), 1e-7, momentum=0.9, weight_decay=2e-4)
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    numbers = {"epoch": 200, "arch": "resnet32", "best_acc1": torch.tensor(42.1)}
    torch.save({**numbers, "state_dict": state, "optimizer": optimizer.state_dict()}, tmp_path / "ckpt.best.pth.tar")
    with torch.inference_mode():
        check(tmp_path / "ckpt.best.pth.tar", network, "cifar")
    own = make_method("ib", context([5] * 100)).build_model(ModelOptions(), seed=0)
    load_weights(own, tmp_path / "ckpt.best.pth.tar", lambda name: True)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in own.state_dict().items())


@pytest.mark.parametrize(
    ("name", "options", "classes", "recipe"),
    [
        ("bbn", ModelOptions("resnet32"), 10, "cifar"),
        ("bbn", ModelOptions("resnet50"), 8142, "inat-imagenet-statistics"),
        ("paco", ModelOptions("resnet32"), 100, "cifar"),
        ("gpaco", ModelOptions("resnet32"), 100, "cifar"),
    ],
)
@torch.inference_mode()
def test_released_networks_of_two_branches_and_of_parametric_contrast(
    tmp_path: Path, name: str, options: ModelOptions, classes: int, recipe: str
) -> None:
    values = {} if name == "bbn" else {"contrast_size": 16, "key_queue": 32}
    network = with_statistics(make_method(name, context([5] * classes), **values).build_model(options, 1))
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    if name != "bbn":  # averaged and never used
        state |= {f"module.linear_k.{key}": torch.zeros(1) for key in ("weight", "bias")}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "ckpt.pth.tar")
    trained = load_trained(tmp_path / "ckpt.pth.tar", CPU)
    assert f"evaluated as {name}" in trained.description
    check(tmp_path / "ckpt.pth.tar", network, recipe)


def test_the_large_mode_starts_from_a_released_first_stage(tmp_path: Path) -> None:
    network, parts = large_network()
    first = {
        kind: {f"module.{name}": value for name, value in parts[part].items()}
        for kind, part in (("feat_model", "feature"), ("classifier", "classifier"))
    }
    torch.save({"state_dict_best": first}, tmp_path / "final_model_checkpoint.pth")
    own = build_network(ModelOptions("resnet50"), 12, seed=0, frozen=True)
    load_weights(own, tmp_path / "final_model_checkpoint.pth", lambda name: True)
    expected = network.state_dict()
    assert all(torch.equal(v, expected[n]) for n, v in own.state_dict().items() if "num_batches" not in n)


def test_the_maxnorm_stage_starts_from_a_released_glmc_network(tmp_path: Path) -> None:
    first, second = (glmc_network(ModelOptions("resnet32", width=8), 10, seed) for seed in (1, 2))
    torch.save({"state_dict": {f"module.{n}": v for n, v in first.state_dict().items()}}, tmp_path / "ckpt.pth")
    load_weights(second, tmp_path / "ckpt.pth", lambda name: True)
    assert all(torch.equal(v, first.state_dict()[n]) for n, v in second.state_dict().items())
