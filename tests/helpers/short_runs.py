"""The first steps of a run, without evaluation, checkpoints, report and trackers."""

import torch

from train.checkpoints.pretrained import find_pretrained
from train.datasets import open_datasets
from train.launch import make_accelerator
from train.options import Options
from train.run import Run
from train.run_folder import RunFolder


def make_run(options: Options) -> Run:
    """The parts of a run; its folder is not made."""
    assert options.run.run_dir is not None
    folder = RunFolder(options.run.run_dir, keep_checkpoints=1)
    pretrained = None if options.model.weights is None else find_pretrained(options.model)  # nothing is fetched
    run = Run(options, folder, open_datasets(options.data), make_accelerator(options.run), pretrained)
    torch.set_num_threads(1)  # a run takes all cores, and tests run beside each other
    return run


def take_steps(run: Run) -> int:
    """Optimizer steps up to max_steps, at the base learning rate; how many they were."""
    steps = 0
    with run.make_loader() as loader:
        for loaded in loader:
            run.trainer.train_step(loaded)
            steps += 1
    return steps
