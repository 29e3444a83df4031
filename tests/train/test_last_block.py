"""The stage that trains the last block of a pretrained ResNet: what is frozen, how, and what starts afresh."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from tests.helpers.runs import COUNTS, options
from tests.helpers.short_runs import make_run, take_steps
from tests.helpers.steps import context, make_method
from train.checkpoints.files import save
from train.models.blocks import last_blocks
from train.models.build import ModelOptions, build_model
from train.run import Run

CONTRAST = {"method.key_queue": 24, "method.key_momentum": 0.5}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a ResNet-18 for 1,000 classes."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.manual_seed(3)
    torch.save(timm.create_model("resnet18", zero_init_last=False).state_dict(), path)
    return path


def run_of(data: Path, folder: Path, weights: Path, **changes: Any) -> Run:
    chosen = {"method.name": "vanilla", "method.stage": "last_block", "model.width": None, "max_steps": 2, **changes}
    return make_run(options(data, folder, **{"model.name": "resnet18", "model.weights": weights, **chosen}))


@pytest.mark.parametrize(
    ("name", "block"),
    [("resnet32", "layer3.4"), ("resnet18-stem32", "conv5_x.1"), ("resnet18", "layer4.1"), ("resnet50", "layer4.2")],
)
def test_the_last_block_of_a_backbone(name: str, block: str) -> None:
    assert last_blocks(build_model(ModelOptions(name), 4, "linear", 0)) == {"": block}


def test_last_blocks_of_experts_and_of_momentum_copies() -> None:
    experts = make_method("ncl", context((1,) * 300)).build_model(ModelOptions(width=4), 0)
    assert last_blocks(experts) == {f"backbone.{n}": f"backbone.{n}.layer3.4" for n in range(3)}
    pair = make_method("paco", context(COUNTS)).build_model(ModelOptions(width=4), 0)
    assert last_blocks(pair) == {f"encoder_{n}.encoder": f"encoder_{n}.encoder.layer3.4" for n in "qk"}


def moved(run: Run) -> set[str]:
    """Names of tensors of the state dict that two steps change."""
    before = {name: value.clone() for name, value in run.trainer.bare_model.state_dict().items()}
    assert take_steps(run) == 2
    return {n for n, v in run.trainer.bare_model.state_dict().items() if not torch.equal(v, before[n])}


def test_everything_before_the_last_block_stays_statistics_included(data: Path, weights: Path, tmp_path: Path) -> None:
    run = run_of(data, tmp_path, weights, **{"method.name": "mixup", "method.fresh_block": True})
    names = set(run.trainer.bare_model.state_dict())
    assert moved(run) == {name for name in names if name.startswith(("layer4.1.", "fc."))}
    last = dict(run.trainer.bare_model.named_modules())["layer4.1.bn1"]
    assert last.training


def test_a_fresh_block_starts_with_new_weights_and_the_rest_with_those_given(
    data: Path, weights: Path, tmp_path: Path
) -> None:
    given = torch.load(weights, weights_only=True)
    for fresh in (False, True):
        state = run_of(data, tmp_path, weights, **{"method.fresh_block": fresh}).trainer.bare_model.state_dict()
        other = {n for n, v in state.items() if not n.startswith("fc.") and not torch.equal(v, given[n])}
        assert other == ({f"layer4.1.conv{n}.weight" for n in (1, 2)} if fresh else set())
        bound = 1 / (512 * 9) ** 0.5  # of torch's own initialisation
        assert (float(state["layer4.1.conv1.weight"].abs().max()) <= bound) is fresh


@pytest.mark.parametrize("name", ["vanilla", "ib"])  # whose network has a prefix that its checkpoints leave out
def test_a_fresh_block_is_not_taken_from_a_checkpoint_either(name: str, data: Path, tmp_path: Path) -> None:
    first = make_method("vanilla", context(COUNTS)).build_model(ModelOptions(width=4), seed=5).state_dict()
    save(tmp_path / "first.pt", {"model": first})
    chosen = {"method.name": name, "method.stage": "last_block", "method.fresh_block": True}
    run = make_run(options(data, tmp_path / "run", **chosen, **{"model.init_from": tmp_path / "first.pt"}))
    state = run.trainer.bare_model.state_dict()
    other = {name for name, value in state.items() if not torch.equal(value, first[name])}
    assert other == {f"layer3.4.conv{n}.weight" for n in (1, 2)}


@pytest.mark.parametrize("name", ["paco", "gpaco"])
def test_convolutions_stay_and_normalisation_learns(name: str, data: Path, weights: Path, tmp_path: Path) -> None:
    chosen = {"method.name": name, "method.frozen": "convolutions", **CONTRAST}
    run = run_of(data, tmp_path, weights, **chosen)
    model = run.trainer.bare_model
    convolutions = {f"{n}.weight" for n, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    frozen = {n for n in convolutions if ".layer4.1." not in n}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    in_copy = {n for n, _ in model.named_parameters() if n.startswith("encoder_k.")}
    assert trained == {n for n, _ in model.named_parameters()} - frozen - in_copy
    found = {n.replace(".encoder.", ".") for n in frozen}  # as the state dict has them
    assert moved(run) == set(model.state_dict()) - found
    optimized = [p for group in run.trainer.parts.optimizer.param_groups for p in group["params"]]
    assert len(optimized) == len(trained), "what is frozen gets neither decay nor momentum"


def test_statistics_of_the_last_block_alone_move_in_the_second_stage(data: Path, tmp_path: Path) -> None:
    first = make_method("vanilla", context(COUNTS)).build_model(ModelOptions(width=4), seed=5)
    save(tmp_path / "first.pt", {"model": first.state_dict()})
    chosen = {"method.name": "mislas", "method.moving": "last_block", "model.init_from": tmp_path / "first.pt"}
    run = make_run(options(data, tmp_path / "run", **chosen, max_steps=2))
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    statistics = {f"layer3.4.bn{n}.{kind}" for n in (1, 2) for kind in kinds}
    assert moved(run) == {"linear.weight", "linear.bias", "linear.scales", *statistics}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.weights": None}, "start from one with --model.pretrained true"),
        (
            {"method.name": "paco", "method.fresh_block": True},
            "a fresh block and its momentum copy would start differently",
        ),
        ({"model.name": "convnext_atto"}, "has no plain ResNet whose last block"),
    ],
)
def test_what_the_stage_cannot_do_is_refused(
    changes: dict[str, Any], message: str, data: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run_of(data, tmp_path, weights, **changes)
