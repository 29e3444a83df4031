"""Whole runs of GLMC and MetaSAug on small data: exact resume, second stages, refusals."""

from pathlib import Path

import pytest
import torch

from tests.pipeline.shard_sets import small_images
from tests.train.runs import last_weights, options, records, same_weights
from train.checkpoint import AVERAGED
from train.run import FINISHED, train

METHODS = {
    "glmc": {"method.contrast_weight": 4},
    "metasaug": {"method.meta_start": 100},  # of 200: the second of two epochs
}


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_images(tmp_path_factory.mktemp("balanced") / "meta", (2, 2, 2, 2)).path


def changes_of(name: str, meta: Path) -> dict[str, object]:
    data = {"data.meta": meta} if name.startswith("metasaug") else {}
    return {"method.name": name, "epochs": 2, **METHODS.get(name, {}), **data}


def checkpoint(run_dir: Path) -> dict:
    return torch.load(max((run_dir / "checkpoints").glob("epoch*.pt")), weights_only=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_continues_exactly(name: str, data: Path, meta: Path, tmp_path: Path) -> None:
    """Stopped inside its last epoch, which for MetaSAug is one with meta steps."""
    changes = changes_of(name, meta)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train(options(data, straight, **changes)) == FINISHED
    assert train(options(data, stopped, **changes, max_steps=6)) == FINISHED
    assert train(options(data, stopped, **changes, resume="auto")) == FINISHED
    assert same_weights(last_weights(straight), last_weights(stopped))
    first, second = checkpoint(straight)["method"], checkpoint(stopped)["method"]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    if name == "metasaug":
        assert first["counts"].sum() == 27  # one epoch of the second phase
    assert records(straight)[-1]["test"]["samples"] == 12


@pytest.mark.parametrize(("first", "second"), [("glmc", "glmc_maxnorm"), ("metasaug", "metasaug_large")])
def test_second_stages_start_from_the_first(first: str, second: str, data: Path, meta: Path, tmp_path: Path) -> None:
    assert train(options(data, tmp_path / "first", **changes_of(first, meta))) == FINISHED
    before = last_weights(tmp_path / "first")
    start = {"model.init_from": max((tmp_path / "first" / "checkpoints").glob("epoch*.pt")), "optimizer.lr": 0.1}
    assert train(options(data, tmp_path / "second", **changes_of(second, meta), **start)) == FINISHED
    after = last_weights(tmp_path / "second")
    trained = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert trained == ({"fc_cb.weight", "fc_cb.bias"} if first == "glmc" else {"linear.weight", "linear.bias"})
    if first == "glmc":
        norms = before["fc_cb.weight"].norm(dim=1)
        bound = norms.min() + 0.1 * (norms.max() - norms.min())
        assert (after["fc_cb.weight"].norm(dim=1) <= bound * 1.0001).all()


def test_the_bound_holds_for_the_average_that_is_evaluated(data: Path, meta: Path, tmp_path: Path) -> None:
    assert train(options(data, tmp_path / "first", **changes_of("glmc", meta))) == FINISHED
    start = {"model.init_from": max((tmp_path / "first" / "checkpoints").glob("epoch*.pt")), "optimizer.lr": 0.1}
    changes = changes_of("glmc_maxnorm", meta) | start | {"ema_decay": 0.9}
    assert train(options(data, tmp_path / "second", **changes)) == FINISHED
    norms = last_weights(tmp_path / "first")["fc_cb.weight"].norm(dim=1)
    bound = norms.min() + 0.1 * (norms.max() - norms.min())
    for part in ("model", AVERAGED):
        weight = checkpoint(tmp_path / "second")[part]["fc_cb.weight"]
        assert (weight.norm(dim=1) <= bound * 1.0001).all(), part


def test_accumulation_is_refused_where_a_step_needs_its_whole_batch(data: Path, meta: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave accumulation at 1"):
        train(options(data, tmp_path / "run", **changes_of("metasaug", meta), accumulation=2))


def test_a_missing_meta_set_is_asked_for(data: Path, meta: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--data\.meta"):
        train(options(data, tmp_path / "run", **changes_of("metasaug", meta) | {"data.meta": None}))
