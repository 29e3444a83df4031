"""Whole runs of GLMC and MetaSAug on small data: exact resume, second stages, refusals."""

from pathlib import Path

import pytest
import torch

from tests.helpers.runs import last_weights, options, records, same_weights
from tests.helpers.shard_sets import small_images
from train.checkpoints.files import AVERAGED
from train.run import FINISHED, train

METHODS = {
    "glmc": {"method.contrast_weight": 4},
    "glmc_maxnorm": {"optimizer.lr": 5.0},  # which takes rows over their bound in every step
    "metasaug": {"method.meta_from_epoch": 100},  # of 200: the second of two epochs
    "metasaug_large": {},
    "ib": {},  # switches between the two epochs
    "lade": {},
    "tde": {},
    "bbn": {},
    "paco": {"method.key_queue": 16},
    "gpaco": {"method.key_queue": 16},
    "pc_softmax": {},
    "mislas": {},
}
FIRST_STAGES = {"glmc_maxnorm": "glmc", "metasaug_large": "metasaug", "mislas": "mixup"}


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_images(tmp_path_factory.mktemp("balanced") / "meta", (2, 2, 2, 2)).path


@pytest.fixture(scope="module")
def first_stages(data: Path, meta: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run folder of the first stage of each method that has one."""
    folders = {name: tmp_path_factory.mktemp("first") / first for name, first in FIRST_STAGES.items()}
    for name, folder in folders.items():
        assert train(options(data, folder, **changes_of(FIRST_STAGES[name], meta))) == FINISHED
    return folders


def changes_of(name: str, meta: Path, first: Path | None = None) -> dict[str, object]:
    """first: the run folder of the first stage."""
    data = {"data.meta": meta} if name.startswith("metasaug") else {}
    start = {} if first is None else {"model.init_from": newest(first)}
    return {"method.name": name, "epochs": 2, **METHODS.get(name, {}), **data, **start}


def newest(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("epoch*.pt"))


def checkpoint(run_dir: Path) -> dict:
    return torch.load(newest(run_dir), weights_only=True)


def bound_of(first: Path) -> torch.Tensor:
    """The norm that MaxNorm bounds rows to after this first stage."""
    norms = last_weights(first)["fc_cb.weight"].norm(dim=1)
    return norms.min() + 0.1 * (norms.max() - norms.min())


@pytest.mark.parametrize("name", METHODS)
def test_a_run_continues_exactly(
    name: str, data: Path, meta: Path, first_stages: dict[str, Path], tmp_path: Path
) -> None:
    """Stopped inside its last epoch, which for MetaSAug is one with meta steps."""
    changes = changes_of(name, meta, first_stages.get(name))
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train(options(data, straight, **changes)) == FINISHED
    assert train(options(data, stopped, **changes, max_steps=6)) == FINISHED
    if name == "glmc_maxnorm":  # bounds are kept at the end of an epoch
        assert last_weights(stopped)["fc_cb.weight"].norm(dim=1).max() > 1.01 * bound_of(first_stages[name])
    assert train(options(data, stopped, **changes, resume="auto")) == FINISHED
    assert same_weights(last_weights(straight), last_weights(stopped))
    first, second = checkpoint(straight)["method"], checkpoint(stopped)["method"]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    if name == "metasaug":
        assert first["counts"].sum() == 27  # one epoch of the second phase
    assert records(straight)[-1]["test"]["samples"] == 12


@pytest.mark.parametrize("name", ["glmc_maxnorm", "metasaug_large"])
def test_second_stages_start_from_the_first(
    name: str, data: Path, meta: Path, first_stages: dict[str, Path], tmp_path: Path
) -> None:
    first = first_stages[name]
    before = last_weights(first)
    changes = changes_of(name, meta, first) | {"optimizer.lr": 0.1}
    assert train(options(data, tmp_path / "second", **changes)) == FINISHED
    after = last_weights(tmp_path / "second")
    trained = {key for key in before if not torch.equal(before[key], after[key])}
    assert before.keys() == after.keys()
    classifier = "fc_cb" if name == "glmc_maxnorm" else "linear"
    assert trained == {f"{classifier}.weight", f"{classifier}.bias"}
    if name == "glmc_maxnorm":
        assert (after["fc_cb.weight"].norm(dim=1) <= bound_of(first) * 1.0001).all()


def test_the_bound_holds_for_the_average_that_is_evaluated(
    data: Path, meta: Path, first_stages: dict[str, Path], tmp_path: Path
) -> None:
    first = first_stages["glmc_maxnorm"]
    changes = changes_of("glmc_maxnorm", meta, first) | {"ema_decay": 0.9}
    assert train(options(data, tmp_path / "second", **changes)) == FINISHED
    for part in ("model", AVERAGED):
        weight = checkpoint(tmp_path / "second")[part]["fc_cb.weight"]
        assert (weight.norm(dim=1) <= bound_of(first) * 1.0001).all(), part


@pytest.mark.parametrize("name", [*FIRST_STAGES, "lws"])
def test_a_first_stage_without_the_classifier_that_a_second_goes_on_with_is_refused(
    name: str, data: Path, meta: Path, first_stages: dict[str, Path], tmp_path: Path
) -> None:
    """GLMC's network has no `linear`, and a plain one no `fc_cb`."""
    other = "metasaug_large" if name == "glmc_maxnorm" else "glmc_maxnorm"
    changes = changes_of(name, meta, first_stages[other])
    classifier = "fc_cb" if name == "glmc_maxnorm" else "linear"
    with pytest.raises(ValueError, match=rf"{classifier}\.bias, {classifier}\.weight not in the checkpoint"):
        train(options(data, tmp_path / "run", **changes))


def test_accumulation_is_refused_where_a_step_needs_its_whole_batch(data: Path, meta: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set accumulation to 1"):
        train(options(data, tmp_path / "run", **changes_of("metasaug", meta), accumulation=2))


def test_a_missing_meta_set_is_asked_for(data: Path, meta: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--data\.meta"):
        train(options(data, tmp_path / "run", **changes_of("metasaug", meta) | {"data.meta": None}))
