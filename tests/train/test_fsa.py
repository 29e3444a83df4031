"""FSA against an independent derivation of the paper's equations; there is no released code."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.runs import COUNTS, last_weights, options, same_weights
from tests.helpers.short_runs import make_run, take_steps
from tests.helpers.steps import context, loss_of, make_method, micro_step, random_images
from tests.helpers.vectors import wave
from train.checkpoints.files import save
from train.checkpoints.trained import load_trained
from train.losses.functions import cross_entropy
from train.methods.fsa import FSA, confused_with
from train.models.build import ModelOptions
from train.models.fsa import FSANetwork, Groups, activation, drawn_places, recombined
from train.run import FINISHED, train

OWN = np.maximum(0, wave("sin", (3, 3, 3), (1.1, 0.9, 1.7), 0.4))
OTHER = np.maximum(0, wave("cos", (3, 3, 3), (0.7, 1.3, 0.8), 0.2))
OWN_VECTOR, OTHER_VECTOR = wave("sin", (3,), (1.9,), 0.6), wave("cos", (3,), (1.4,), 0.3)
UNIFORMS = np.array([0.35, 0.05, 0.75, 0.45, 0.15, 0.85, 0.55, 0.25, 0.95])


def maps(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values).flatten(1)[None]


def test_classes_that_a_class_is_confused_with() -> None:
    z = torch.from_numpy(wave("sin", (5, 5), (1.7, 0.9), 0.3, 2))
    scores, classes = z.softmax(dim=1).numpy(), np.arange(5)
    found = confused_with(scores, classes, 2)
    assert found.tolist() == [[1, 2], [0, 2], [4, 3], [2, 4], [1, 0]]
    head = confused_with(scores, classes, 1, np.array([True, True, False, False, False]))
    assert head[2:, 0].tolist() == [np.argmax(row[:2]) for row in scores[2:]]
    assert head[:2, 0].tolist() == [1, 0]
    assert confused_with(np.full((1, 4), 0.25), np.array([1]), 3).tolist() == [[0, 2, 3]]


def test_activation_maps() -> None:
    own = activation(maps(OWN), torch.from_numpy(OWN_VECTOR)[None])[0]
    expected = [0.62444438, 0.72171416, 0.42742966, 1, 0.47554016, 0.095083075, 0.70306147, 0.42742966, 0]
    np.testing.assert_allclose(own, expected, rtol=1e-6)
    other = activation(maps(OTHER), torch.from_numpy(OTHER_VECTOR)[None])[0]
    expected = [1, 0.81000161, 0.52158283, 0.55934305, 0.52158283, 0.52158283, 0.52158283, 0.36321898, 0]
    np.testing.assert_allclose(other, expected, rtol=1e-6)
    assert activation(torch.ones(1, 2, 4), torch.ones(1, 2)).tolist() == [[0.0] * 4]
    assert activation(torch.ones(1, 2, 1), torch.ones(1, 2)).tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("specific_above", "generic_below", "expected"),
    [(0.6, 0.6, (0.34064532, 0.19482783, 0.28557807)), (0.8, 0.2, (0.42824808, 0.51019349, 0.49195529))],
)
def test_a_new_row(specific_above: float, generic_below: float, expected: tuple[float, ...]) -> None:
    vectors = torch.from_numpy(np.stack([OWN_VECTOR, OTHER_VECTOR]))
    from_own = torch.tensor([int(np.floor(0.4 * 9 + 0.5))])
    groups = Groups(2, vectors, from_own, torch.from_numpy(UNIFORMS)[None], specific_above, generic_below)
    rows = groups.features(torch.cat([maps(OWN), maps(OTHER)]))
    np.testing.assert_allclose(rows[0], [0.35175581, 0.23086757, 0.23249828], rtol=1e-6)
    np.testing.assert_allclose(rows[1], expected, rtol=1e-6)


def test_places_are_drawn_from_those_allowed() -> None:
    allowed = torch.zeros(1, 9, dtype=torch.bool)
    allowed[0, [0, 1, 3, 6]] = True
    assert drawn_places(allowed, torch.from_numpy(UNIFORMS)[None])[0, :4].tolist() == [1, 0, 6, 1]
    allowed = torch.zeros(1, 9, dtype=torch.bool)
    allowed[0, [3, 7, 8]] = True
    assert drawn_places(allowed, torch.from_numpy(UNIFORMS)[None])[0, 4:].tolist() == [3, 8, 7, 3, 8]
    nearly_one = torch.tensor([[np.nextafter(1, 0)]]).float()
    assert nearly_one.item() == 1
    assert drawn_places(allowed, nearly_one).item() == 8
    none = torch.zeros(1, 9, dtype=torch.bool)
    assert drawn_places(none, torch.tensor([[0.0, 0.5, 0.999]])).tolist() == [[0, 4, 8]]


def test_a_place_without_features_is_not_drawn() -> None:
    """A map of zeros at its coldest place: nothing generic is left of it but the next coldest."""
    own, other = torch.ones(1, 1, 3), torch.tensor([[[0.0, 0.1, 1.0]]])
    groups = Groups(2, torch.ones(2, 1), torch.tensor([0]), torch.zeros(1, 3), 0.8, 0.2)
    assert groups.features(torch.cat([own, other]))[1].item() == pytest.approx(0.1)


def test_all_places_of_one_image_and_none_of_the_other() -> None:
    every = torch.ones(1, 9, dtype=torch.bool)
    uniforms = (torch.arange(9)[None] + 0.5) / 9
    for from_own, expected in ((9, OWN), (0, OTHER)):
        row = recombined(maps(OWN), maps(OTHER), every, every, torch.tensor([from_own]), uniforms)
        np.testing.assert_allclose(row[0], expected.reshape(3, 9).mean(axis=1), rtol=1e-12)


def test_the_loss_is_the_mean_over_rows() -> None:
    x = torch.from_numpy(np.maximum(0, wave("sin", (4, 3), (0.8, 1.7), 0.5)))
    layer = nn.Linear(3, 4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(wave("cos", (4, 3), (0.6, 1.1), 0.5)))
        layer.bias.copy_(torch.from_numpy(wave("sin", (4,), (0.7,), 0.1)))
    loss = cross_entropy(layer(x), torch.tensor([3, 3, 0, 1])).mean()
    loss.backward()
    assert loss.item() == pytest.approx(1.6717455, rel=1e-7)
    np.testing.assert_allclose(layer.bias.grad, [0.010416561, 0.064272327, 0.26555708, -0.34024597], rtol=1e-6)


# ---------------------------------------------------------------------- a step


def objective(counts: tuple[int, ...] = COUNTS, **values: object) -> FSA:
    made = make_method("fsa", context(counts), **values).objective
    assert isinstance(made, FSA)
    return made


def surveyed(counts: tuple[int, ...] = COUNTS, **values: object) -> tuple[FSA, FSANetwork]:
    """An objective and its network, the tail confused with classes 2, 1 and 0 in this order."""
    method = objective(counts, **values)
    network = method.build_model(ModelOptions(width=4), seed=0)
    assert isinstance(network, FSANetwork)
    count = method.options.partners
    method.load_state_dict(
        {
            "partners": torch.tensor([[2, 1, 0][:count]] * len(counts)),
            "class_vectors": network.classifier.weight.detach() + 1,
        }
    )
    return method, network


def step_of(rows: int, part: int = 0, parts: int = 1) -> Any:
    groups = ([3, 2, 1, 0] * rows)[:rows]
    heads = [row % 3 for row in range(rows)]
    return micro_step(
        0,
        {"original": (random_images(rows), heads), "tail": (random_images(rows, seed=1), groups)},
        part=part,
        parts=parts,
    )


def test_a_step_by_hand() -> None:
    """The network's own maps, and the plan's draws, put together row by row."""
    method, network = surveyed()
    step = step_of(8)
    values, vectors = method.values(step.plan), method.class_vectors
    assert values["from_own"].shape == (6,)
    assert values["uniforms"].shape == (6, 64)
    plain = method.context.input_builder.plain
    rows, labels = [], []
    with torch.no_grad():
        heads, tails = (network.encoder.maps(plain(step.batches[n].images[0])) for n in ("original", "tail"))  # type: ignore[operator]
        for row in range(8):
            rows.append(heads[row].mean(dim=(1, 2)))
            labels.append(row % 3)
        new = 0
        for row in range(8):
            labels.append(3)
            if row % 4 == 0:
                rows.append(tails[row].mean(dim=(1, 2)))
                continue
            own, other = tails[row - row % 4].flatten(1), tails[row].flatten(1)
            u, count = values["uniforms"][new], int(values["from_own"][new])
            picked = [
                _pick(own, vectors[3], u[j], lambda m: m > 0.8)
                if j < count
                else _pick(other, vectors[3 - row % 4], u[j], lambda m: m < 0.2)
                for j in range(64)
            ]
            rows.append(torch.stack(picked).mean(dim=0))
            new += 1
        expected = cross_entropy(network.classifier(torch.stack(rows)), torch.tensor(labels)).mean()
    output = loss_of(method, network, step)
    torch.testing.assert_close(output.loss, expected)
    assert output.logits.shape == (8, 4)


def _pick(own: Tensor, vector: Tensor, u: float, wanted: Any) -> Tensor:
    heat = vector @ own
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    places = [p for p in range(own.shape[1]) if wanted(float(heat[p])) and bool((own[:, p] != 0).any())]
    places = places or list(range(own.shape[1]))
    return own[:, places[int(u * len(places))]]


def test_shares_of_micro_batches_add_up_and_only_the_classifier_learns() -> None:
    method, network = surveyed()
    whole = loss_of(method, network, step_of(16)).loss
    parts = [loss_of(method, network, step_of(16, part, 4)).loss for part in range(4)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    whole.backward()
    assert {name for name, p in network.named_parameters() if p.grad is not None} == {"linear.weight", "linear.bias"}
    assert not network.train().encoder.training


def test_a_part_that_groups_do_not_fill_is_refused() -> None:
    method, _ = surveyed()
    with pytest.raises(ValueError, match="a micro-batch has 2 rows, which groups of 4"):
        method.values(step_of(8, 0, 4).plan)
    with pytest.raises(ValueError, match="batch_size is 10, which groups of 4 rows"):
        method.check_batch_size(10)


@pytest.mark.parametrize(
    ("counts", "values", "message"),
    [
        ((5, 5), {"partners": 1}, "no class is left for the tail: all 2 are needed"),
        ((14, 7, 4, 2), {"partners": 4}, "partners is 4, but a class of the tail has 3 others"),
        ((14, 14, 1, 1), {"partners": 3, "confusing_from": "head"}, "a class of the tail has 2 others"),
    ],
)
def test_classes_that_give_no_groups_are_refused(counts: tuple, values: dict[str, Any], message: str) -> None:
    method = objective(counts, **values)
    network = method.build_model(ModelOptions(width=4), seed=0)
    with pytest.raises(ValueError, match=message):
        method.survey(network, lambda classes: iter(()))


@pytest.mark.parametrize(
    "values", [{"head_share": 1.0}, {"partners": 0}, {"specific_above": 1.5}, {"generic_below": -0.1}]
)
def test_impossible_options_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        make_method("fsa", context(COUNTS), **values)


@pytest.mark.parametrize(
    "model",
    [
        ModelOptions("deit_tiny_patch16_224", image_size=32),
        ModelOptions("resnet32-bbn"),
        ModelOptions("convnext_atto"),
    ],
)
def test_a_backbone_whose_classifier_does_not_see_a_mean_of_maps_is_refused(model: ModelOptions) -> None:
    with pytest.raises(ValueError, match="take a ResNet"):
        objective().build_model(model, seed=0)


@pytest.mark.parametrize(("name", "places"), [("resnet32", 64), ("resnet18-stem32", 16), ("resnet18", 1)])
def test_places_of_a_backbone(name: str, places: int) -> None:
    method = objective()
    method.build_model(ModelOptions(name), seed=0)
    assert method.places == places


def test_a_run_without_a_first_phase_is_refused() -> None:
    with pytest.raises(ValueError, match=r"second stage.*--model\.init_from"):
        make_method("fsa", context(COUNTS)).build_model(ModelOptions(width=4), seed=0)


# ----------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the first phase."""
    folder = tmp_path_factory.mktemp("first") / "run"
    chosen = {"method.name": "vanilla", "epochs": 1}
    assert train(options(data, folder, **chosen)) == FINISHED
    return max((folder / "checkpoints").glob("epoch*.pt"))


def chosen(first: Path, **others: Any) -> dict[str, Any]:
    return {"method.name": "fsa", "model.init_from": first, "epochs": 2, **others}


def test_the_table_is_that_of_the_scores_of_the_first_phase(data: Path, first: Path, tmp_path: Path) -> None:
    run = make_run(options(data, tmp_path / "run", **chosen(first)))
    method, network, dataset = run.method.objective, run.trainer.bare_model, run.datasets["train"]
    assert isinstance(method, FSA)
    assert torch.equal(method.class_vectors, torch.load(first, weights_only=True)["model"]["linear.weight"])
    ids = np.flatnonzero(dataset.index["label"] == 3)
    assert len(ids) == COUNTS[3]
    inputs = torch.cat([images for images, _ in run._images_of_classes(np.array([3]))])
    assert len(inputs) == len(ids)
    with torch.no_grad():
        scores = run.method.objective.eval_logits(network, inputs).softmax(dim=1).mean(dim=0)
    assert method.partners[3].tolist() == [c for c in scores.argsort(descending=True).tolist() if c != 3]
    plan = run.plan.step(0, 0)
    assert set(plan.streams["original"].labels) <= {0, 1, 2}
    assert plan.streams["tail"].labels.tolist() == [3, *method.partners[3].tolist()] * 2


def test_two_steps_move_the_classifier_alone(data: Path, first: Path, tmp_path: Path) -> None:
    run = make_run(options(data, tmp_path / "run", **chosen(first, max_steps=2)))
    before = {name: value.clone() for name, value in run.trainer.bare_model.state_dict().items()}
    vectors = run.method.objective.state_dict()["class_vectors"].clone()
    assert take_steps(run) == 2
    moved = {n for n, v in run.trainer.bare_model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {"linear.weight", "linear.bias"}
    assert torch.equal(run.method.objective.state_dict()["class_vectors"], vectors), "those of the first phase"


@pytest.fixture(scope="module")
def stopped(data: Path, first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended inside its last epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert train(options(data, folder, **chosen(first, max_steps=4))) == FINISHED
    return folder


def test_a_resumed_run_takes_its_tables_from_the_checkpoint(
    data: Path, first: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, and without looking at the images again: on other devices near ties could fall otherwise."""
    straight, resumed = tmp_path / "straight", shutil.copytree(stopped, tmp_path / "resumed")
    assert train(options(data, straight, **chosen(first))) == FINISHED
    monkeypatch.setattr(FSA, "survey", lambda *a: pytest.fail("the checkpoint has it"))
    assert train(options(data, resumed, **chosen(first, resume="auto"))) == FINISHED
    assert same_weights(last_weights(straight), last_weights(resumed))


def test_a_trained_network_is_read_back_without_tables_and_first_phase(stopped: Path) -> None:
    """Class counts are not known then, so there is neither head nor tail."""
    trained = load_trained(stopped, torch.device("cpu"))
    images = random_images(3)[0]
    with torch.inference_mode():
        found = trained.logits(images)
        plain = make_method("vanilla", context(COUNTS)).build_model(ModelOptions(width=4), seed=0)
        plain.load_state_dict(trained.model.state_dict())
        torch.testing.assert_close(found, plain.eval()(trained.method.context.input_builder.plain(images)))


def test_a_checkpoint_of_other_options_is_refused_before_the_plan(data: Path, first: Path, stopped: Path) -> None:
    other = chosen(first, resume="auto", **{"method.partners": 1})
    with pytest.raises(ValueError, match=r"method\.partners: 3 in the checkpoint, 1 in this run"):
        train(options(data, stopped, **other))


def test_a_first_phase_with_another_classifier_is_refused(data: Path, tmp_path: Path) -> None:
    network = make_method("vanilla", context(COUNTS), loss="ldam").build_model(ModelOptions(width=4), seed=0)
    save(tmp_path / "ldam.pt", {"model": network.state_dict()})
    with pytest.raises(ValueError, match=r"linear\.(bias|weight)"):
        train(options(data, tmp_path / "run", **chosen(tmp_path / "ldam.pt")))
