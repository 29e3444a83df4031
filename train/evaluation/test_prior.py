"""Another class prior where a network is used than the uniform one that it was trained for."""

import json
import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from train.checkpoints.trained import Trained
from train.losses.functions import log_prior
from train.methods.parts import Objective

logger = logging.getLogger(__name__)


class ForTestPrior(Objective):
    """An objective whose predictions are argmax z + log π', π' the prior of the test data (Menon et al., ICLR 2021).

    Right for networks that target the uniform prior, as those trained under logit adjustment or balanced softmax do.
    """

    def __init__(self, objective: Objective, log_prior: Tensor):
        super().__init__(objective.options, objective.context, objective.mixing)
        self.objective, self.log_prior = objective, log_prior

    def eval_logits(self, model: nn.Module, images: Tensor) -> Tensor:
        return self.objective.eval_logits(model, images) + self.log_prior

    def eval_members(self, model: nn.Module, images: Tensor) -> Tensor:
        return self.objective.eval_members(model, images) + self.log_prior


def for_test_prior(trained: Trained, prior: str | Sequence[float], train_counts: np.ndarray | None) -> Trained:
    """The network as it predicts where classes come by another prior; the same for "uniform".

    Args:
        prior: uniform, train, a JSON file with a list of the classes' counts or shares, or such a list.

    Raises:
        ValueError, FileNotFoundError: the counts are absent, or not of these classes.
    """
    if prior == "uniform":
        return trained
    if not isinstance(prior, str):
        shares = _checked(list(prior), "a list")
        prior = f"of {len(shares)} shares"
    elif prior == "train":
        if train_counts is None:
            raise ValueError("--test-prior train needs the training set's counts: give --train-counts")
        shares = np.asarray(train_counts, dtype=np.float64)
    else:
        shares = _read_shares(Path(prior))
    if len(shares) != trained.classes:
        raise ValueError(f"--test-prior {prior}: {len(shares)} classes, the network has {trained.classes}")
    description = f"{trained.description}, for the test prior {prior}"
    method = copy(trained.method)
    method.objective = ForTestPrior(method.objective, log_prior(shares).to(method.context.device))
    return replace(trained, method=method, description=description)


def with_test_prior(trained: Trained, prior: str | Sequence[float], train_counts: np.ndarray | None) -> Trained:
    """`for_test_prior`, with its cautions in the log."""
    for caution in prior_cautions(trained, prior):
        logger.warning("%s", caution)
    return for_test_prior(trained, prior, train_counts)


def prior_cautions(trained: Trained, prior: str | Sequence[float]) -> list[str]:
    """What one has to know who asks for another prior."""
    if prior == "uniform" or trained.corrects_prior or not trained.settings:
        return []
    return [
        f"{trained.path}: its loss does not correct the class prior, so that its logits have that of training already, "
        "and a test prior comes on top; train with --method.loss la or bs, or correct them by --logit-adjustment 1"
    ]


def _read_shares(path: Path) -> np.ndarray:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"--test-prior: {path} is neither uniform nor train nor a file of counts") from None
    except ValueError as error:
        raise ValueError(f"--test-prior {path}: not JSON: {error}") from error
    return _checked(content, str(path))


def _checked(content: Any, where: str) -> np.ndarray:
    if not isinstance(content, list) or not all(isinstance(n, int | float | np.number) and n > 0 for n in content):
        raise ValueError(f"--test-prior {where}: expected a list of positive counts or shares, one per class")
    return np.array(content, dtype=np.float64)
