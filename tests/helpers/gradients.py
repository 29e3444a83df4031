"""Gradients of a run's first steps, written to a file: started alone and under `accelerate launch` by a test.

    python -m tests.helpers.gradients PROCESSES OUT DATA_DIR RUN_DIR

Everything is the trainer's own; only the network is put into float64 with batch norm in evaluation mode (its statistics
depend on the size of a micro-batch), and the optimizer step is replaced by writing the gradients down.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.runs import options
from train.datasets import open_datasets
from train.launch import make_accelerator
from train.methods.objectives.classifier import Classifier
from train.run import Run
from train.run_folder import RunFolder

CRITERIA = {"ce": ("ce", "none"), "ce-drw": ("ce", "drw"), "ldam-drw": ("ldam", "drw"), "bs": ("bs", "none")}
ACCUMULATIONS = (1, 2)


class DoubleInEvaluationMode(nn.Module):
    """A network in float64 whose batch norm uses its running statistics, whatever is asked of it."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.double().eval()

    def train(self, mode: bool = True) -> nn.Module:
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.double())


def main() -> None:
    processes, out, data, run_dir = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    build = Classifier.build_model
    names = Classifier.head_names
    Classifier.head_names = lambda self, model: names(self, model.network)  # type: ignore[method-assign]
    Classifier.build_model = lambda *a, **k: DoubleInEvaluationMode(build(*a, **k))  # type: ignore[method-assign]
    found: dict[str, Any] = {}
    accelerator = None
    for name, (loss, rule) in CRITERIA.items():
        for accumulation in ACCUMULATIONS:
            changes = {"method.loss": loss, "method.rule": rule, "method.drw_from_epoch": 0, "epochs": 1}
            chosen = options(data, run_dir, accumulation=accumulation, **changes)
            accelerator = accelerator or make_accelerator(chosen.run)
            assert accelerator.num_processes == processes, f"{accelerator.num_processes} processes, not {processes}"
            run = Run(chosen, RunFolder(run_dir, 1), open_datasets(chosen.data), accelerator)
            found[f"{name} in {accumulation}"] = gradients_of_an_epoch(run)
    assert accelerator is not None
    if accelerator.is_main_process:
        torch.save(found, out)
    accelerator.end_training()


def gradients_of_an_epoch(run: Run) -> list[Tensor]:
    """One flat float64 gradient for each step; the last batch is short."""
    gradients: list[Tensor] = []

    def write_down(model: nn.Module) -> None:
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone())

    run.method.before_optimizer = write_down  # type: ignore[method-assign]
    run.trainer.parts.optimizer.step = lambda: None  # type: ignore[method-assign]
    with run.make_loader() as loader:
        for loaded in loader:
            run.trainer.train_step(loaded)
    return gradients


if __name__ == "__main__":
    main()
