"""Causal Norm (TDE) against the numbers of the official code: heads, evaluation, the running feature."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.steps import context, loss_of, make_method, micro_step, random_images
from tests.helpers.vectors import wave
from train.losses.functions import cross_entropy
from train.methods.method import Method
from train.methods.objectives.tde import TDE
from train.models.build import ModelOptions
from train.models.causal import CausalClassifier
from train.models.semantic import SemanticNetwork


def head() -> CausalClassifier:
    made = CausalClassifier(4, 3).double()
    made.weight.data = torch.from_numpy(wave("sin", (3, 4), (0.5, 0.9), 0.2, 0.6))
    return made


FEATURES = torch.from_numpy(1 + wave("cos", (2, 4), (0.8, 0.5), 0.3, 0.9))


def test_training_logits() -> None:
    classifier = head()
    z = classifier(FEATURES)
    expected = [[13.315412, 11.531457, 5.004276], [13.061856, 12.23641, 6.1667307]]
    np.testing.assert_allclose(z.detach(), expected, rtol=1e-6)
    loss = cross_entropy(z, torch.tensor([2, 0])).mean()
    assert loss.item() == pytest.approx(4.4153000, rel=1e-6)
    loss.backward()
    assert classifier.weight.grad is not None
    np.testing.assert_allclose(classifier.weight.grad[0], [2.0536568, -0.27971628, -0.2030015, 1.4814984], rtol=1e-6)


def test_evaluation_logits() -> None:
    classifier = head()
    torch.testing.assert_close(classifier.without_confounder(FEATURES, 3.0), classifier(FEATURES))  # before any step
    classifier.embed.copy_(torch.from_numpy(wave("sin", (4,), (0.6,), 0.7, 2)))
    half = [[-7.7451815, -5.8727895, -1.8716839], [-7.4701923, -4.669675, -0.36342829]]
    np.testing.assert_allclose(classifier.without_confounder(FEATURES, 1.5).detach(), half, rtol=1e-6)
    full = [-28.805775, -23.277036, -8.7476438]
    np.testing.assert_allclose(classifier.without_confounder(FEATURES, 3.0)[0].detach(), full, rtol=1e-6)
    torch.testing.assert_close(classifier.without_confounder(FEATURES, 0.0), classifier(FEATURES))


def test_features_of_zeros_have_logits_of_zeros() -> None:
    assert not head()(torch.zeros(1, 4, dtype=torch.float64)).any()


def method(**values: object) -> Method:
    return make_method("tde", context((9, 4, 2), epochs=90, lr=0.2, kind="cosine", for_epochs=90, warmup_epochs=0,
                                      ends_at_zero=True), **values)  # fmt: skip


def objective(made: Method) -> TDE:
    assert isinstance(made.objective, TDE)  # type: ignore[attr-defined]
    return made.objective  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("epoch", "lr", "decay"),
    [
        (70, 0.021198925, 0.9),
        (71, 0.019098301, 0.9045085),
        (79, 0.0060307379, 0.96984631),
        (88, 6.0917298e-5, 0.99969541),
        (89, 0.0, 1.0),
    ],
)
def test_the_decay_follows_the_learning_rate(epoch: int, lr: float, decay: float) -> None:
    assert method().context.schedule.lr(epoch) == pytest.approx(lr, rel=1e-6, abs=1e-12)
    assert objective(method()).decay(epoch) == pytest.approx(decay, rel=1e-7)
    assert objective(method(decay_by_rate=False)).decay(epoch) == 0.9


class Given(SemanticNetwork):
    """Says these features, whatever it is shown."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__(nn.Identity(), "linear", CausalClassifier(4, classes).double())
        self.given = torch.zeros(2, 4, dtype=torch.float64)

    def features(self, images: Tensor) -> Tensor:
        return self.given


@pytest.mark.parametrize(
    ("decays", "expected"),
    [
        ((0.9, 0.9, 0.9), (4.3643883, 3.9882498, 3.4103038, 2.7217952)),
        ((0.9, 0.95, 1.0), (4.7934904, 4.4261429, 3.8257449, 3.0870861)),
    ],
)
def test_the_running_feature(
    decays: tuple[float, ...], expected: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, model = method(), Given()
    for t, decay in enumerate(decays):
        monkeypatch.setattr(objective(made), "decay", lambda epoch, decay=decay: decay)
        model.given = torch.from_numpy(1 + wave("sin", (2, 4), (0.7, 0.4), 0.5 + t))
        loss_of(made, model, micro_step(0, {"original": (random_images(2), [0, 1])}))
        made.objective.before_optimizer(model)
    np.testing.assert_allclose(model.head.get_buffer("embed"), expected, rtol=1e-6)


def test_micro_batches_add_up_in_the_loss_and_in_the_running_feature() -> None:
    streams = {"original": (random_images(7), [0, 2, 1, 1, 0, 0, 1])}
    found = []
    for parts in (1, 3):
        made = method()
        model = made.build_model(ModelOptions(width=4), seed=0).double().eval()
        model.register_forward_pre_hook(lambda module, args: tuple(x.double() for x in args))
        losses = [loss_of(made, model, micro_step(0, streams, part=part, parts=parts)).loss for part in range(parts)]
        made.objective.before_optimizer(model)
        found.append((torch.stack(losses).sum(), model.state_dict()["linear.embed"]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert found[0][1].any()


def test_every_evaluation_leaves_the_running_feature_out() -> None:
    made = method(tde_alpha=1.5)
    model = made.build_model(ModelOptions("resnet32-bbn", width=4), seed=0).eval()
    assert isinstance(model, SemanticNetwork) and isinstance(model.head, CausalClassifier)
    model.head.embed.copy_(torch.arange(32.0))
    images = made.context.input_builder.plain(random_images(3)[0])
    features, logits = model(images)
    found = made.objective.eval_logits(model, images)
    torch.testing.assert_close(found, model.head.without_confounder(features, 1.5))
    assert not torch.allclose(found, logits)


def test_features_that_heads_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of"):
        CausalClassifier(5, 3, heads=2)
