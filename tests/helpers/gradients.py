"""Gradients of a run's first steps, written to a file: started on one rank and on two by a test.

    python -m tests.helpers.gradients PROCESSES OUT DATA_DIR RUN_DIR

Everything is the trainer's own; only the network is put into float64 with batch norm in evaluation mode (its statistics
depend on the size of a micro-batch), and the optimizer step is replaced by writing the gradients down.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.runs import COUNTS, options
from tests.helpers.steps import context, make_method
from train.checkpoints.files import save
from train.datasets import open_datasets
from train.launch import make_accelerator
from train.methods.method import Method
from train.run import Run
from train.run_folder import RunFolder

CRITERIA = {"ce": ("ce", "none"), "ce-drw": ("ce", "drw"), "ldam-drw": ("ldam", "drw"), "bs": ("bs", "none")}
CASES: dict[str, dict[str, Any]] = {
    **{
        name: {"method.loss": loss, "method.rule": rule, "method.drw_from_epoch": 0}
        for name, (loss, rule) in CRITERIA.items()
    },
    "ib": {"method.name": "ib", "method.ib_from_epoch": 0},
    "lade": {"method.name": "lade"},
    "smoothing": {"method.objective": "smoothing"},
    "tde": {"method.name": "tde"},
    "bbn": {"method.name": "bbn"},
    # Groups as small as the smallest part: rows of other groups are no columns, however the batch is cut.
    "paco": {"method.name": "paco", "method.key_queue": 16, "method.group": 2},
    "gpaco": {"method.name": "gpaco", "method.key_queue": 16, "method.group": 2},
    "fsa": {"method.name": "fsa", "method.partners": 1},
}
ACCUMULATIONS = (1, 2)


def accumulations(case: str, processes: int) -> tuple[int, ...]:
    """The losses of one classifier are cut in all ways, the others in the one with most parts."""
    if case in CRITERIA:
        return ACCUMULATIONS
    # LADE's micro-batches cannot be run one after the other.
    return (1,) if processes == 1 or case == "lade" else (2,)


def in_double(network: nn.Module) -> nn.Module:
    """The network in float64, with batch norm that uses its running statistics, whatever is asked of it."""

    def as_double(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)

    network.double().eval()
    network.register_forward_pre_hook(as_double)
    network.train = lambda mode=True: network  # type: ignore[assignment, method-assign]
    return network


def main() -> None:
    processes, out, data, run_dir = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    first_phase = out.with_name(f"first-{os.environ.get('RANK', 0)}.pt")  # of each process its own
    network = make_method("vanilla", context(COUNTS)).build_model(options(data, run_dir).model, seed=5)
    save(first_phase, {"model": network.state_dict()})
    build = Method.build_model
    Method.build_model = lambda *a, **k: in_double(build(*a, **k))  # type: ignore[method-assign]
    found: dict[str, Any] = {}
    accelerator = None
    for name, changes in CASES.items():
        for accumulation in accumulations(name, processes):
            start = {"model.init_from": first_phase} if name == "fsa" else {}
            chosen = options(data, run_dir, accumulation=accumulation, epochs=1, **changes, **start)
            accelerator = accelerator or make_accelerator(chosen.run)
            assert accelerator.num_processes == processes, f"{accelerator.num_processes} processes, not {processes}"
            run = Run(chosen, RunFolder(run_dir, 1), open_datasets(chosen.data), accelerator)
            torch.set_num_threads(1)  # a run takes all cores, and tests run beside each other
            found[f"{name} in {accumulation}"] = gradients_of_an_epoch(run)
    assert accelerator is not None
    if accelerator.is_main_process:
        torch.save(found, out)
    accelerator.end_training()


def gradients_of_an_epoch(run: Run) -> list[Tensor]:
    """One flat float64 gradient for each step; the last batch is short."""
    gradients: list[Tensor] = []

    before_optimizer = run.method.objective.before_optimizer

    def write_down(model: nn.Module) -> None:
        before_optimizer(model)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone())

    run.method.objective.before_optimizer = write_down  # type: ignore[method-assign]
    run.trainer.parts.optimizer.step = lambda: None  # type: ignore[method-assign]
    with run.make_loader() as loader:
        for loaded in loader:
            run.trainer.train_step(loaded)
    return gradients


if __name__ == "__main__":
    main()
