"""Predictions for another test prior: Bayes' rule, against a count."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers.steps import context, make_method
from train.checkpoints.trained import Trained
from train.evaluation.test_prior import for_test_prior, prior_cautions


def network() -> Trained:
    """Its logits are the images themselves."""
    plain: Any = SimpleNamespace(plain=lambda images: images)
    method = make_method("vanilla", replace(context((7, 2, 1)), input_builder=plain))
    return Trained(Path("x.pt"), method, nn.Identity(), None, 3, "a network")  # type: ignore[arg-type]


LOGITS = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])


def test_the_posterior_is_that_of_bayes(tmp_path: Path) -> None:
    counts = np.array([70, 20, 10])
    uniform = LOGITS.softmax(dim=1)
    expected = uniform * torch.from_numpy(counts)
    expected = expected / expected.sum(dim=1, keepdim=True)
    (tmp_path / "prior.json").write_text(json.dumps([0.7, 0.2, 0.1]))
    for prior in ("train", str(tmp_path / "prior.json")):
        found = for_test_prior(network(), prior, counts)
        torch.testing.assert_close(found.logits(LOGITS).softmax(dim=1), expected.float())
        members = found.method.objective.eval_members(found.model, LOGITS)
        torch.testing.assert_close(members[0].softmax(dim=1), expected.float())
        assert prior in found.description
    assert for_test_prior(network(), "uniform", counts).logits(LOGITS) is not None
    assert torch.equal(for_test_prior(network(), "uniform", counts).logits(LOGITS), LOGITS)


def test_a_network_whose_logits_have_the_prior_already_is_warned_of() -> None:
    plain = replace(network(), settings={"method.loss": "ce"})
    adjusted = replace(network(), settings={"method.loss": "la"})
    assert not prior_cautions(plain, "uniform") and not prior_cautions(adjusted, "train")
    (caution,) = prior_cautions(plain, [1.0, 2.0, 3.0])
    assert "--method.loss la" in caution


def test_counts_must_be_there_and_of_these_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--train-counts"):
        for_test_prior(network(), "train", None)
    with pytest.raises(ValueError, match="positive counts or shares"):
        for_test_prior(network(), [0.5, 0.5, 0.0], None)
    with pytest.raises(FileNotFoundError, match="neither uniform nor train"):
        for_test_prior(network(), str(tmp_path / "absent.json"), None)
    (tmp_path / "prior.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="2 classes, the network has 3"):
        for_test_prior(network(), str(tmp_path / "prior.json"), None)
    (tmp_path / "prior.json").write_text("[1, 0, 2]")
    with pytest.raises(ValueError, match="positive counts or shares"):
        for_test_prior(network(), str(tmp_path / "prior.json"), None)
