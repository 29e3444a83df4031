"""Post-hoc corrections against their formulas."""

import numpy as np
import pytest
import torch
from torch import nn

from train.evaluation.posthoc import adjust_logits, tau_normalise
from train.models.build import ModelOptions, build_model
from train.models.resnet_cifar import ResNet32

COUNTS = np.array([50, 20, 5])
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> ResNet32:
    built = build_model(ModelOptions(width=4), 3, "linear", seed=0).eval()
    assert isinstance(built, ResNet32)
    return built


@torch.no_grad()
@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_tau_normalisation_divides_class_vectors_by_a_power_of_their_norms(model: ResNet32, tau: float) -> None:
    features, weight = model.features(IMAGES), model.linear.weight.clone()
    expected = torch.stack([features @ (w / w.pow(2).sum().sqrt() ** tau) for w in weight], dim=1)
    tau_normalise(model, tau)
    torch.testing.assert_close(model(IMAGES), expected)


@torch.no_grad()
def test_logit_adjustment_subtracts_the_log_prior(model: ResNet32) -> None:
    expected = model(IMAGES) - 1.5 * torch.tensor(np.log(COUNTS / COUNTS.sum())).float()
    adjust_logits(model, COUNTS, 1.5)
    torch.testing.assert_close(model(IMAGES), expected)


@pytest.mark.parametrize("correct", [lambda m: tau_normalise(m, 1.0), lambda m: adjust_logits(m, COUNTS, 1.0)])
def test_a_cosine_classifier_is_refused(correct: object) -> None:
    cosine: nn.Module = build_model(ModelOptions(width=4), 3, "cosine", seed=0)
    with pytest.raises(ValueError, match="needs a linear classifier with a bias"):
        correct(cosine)  # type: ignore[operator]
