"""The first steps of a run, without evaluation, report and trackers."""

from unittest import mock

from train.datasets import open_datasets
from train.evaluator import Evaluator
from train.launch import make_accelerator
from train.options import Options
from train.run import Run
from train.run_folder import RunFolder

NOTHING = {"test": {"all": 0.0, "many": None, "medium": None, "few": None}}


def make_run(options: Options) -> Run:
    """The parts of a run whose folder is ready."""
    assert options.run.run_dir is not None
    folder = RunFolder(options.run.run_dir, keep_checkpoints=1)
    folder.checkpoints.prepare()
    return Run(options, folder, open_datasets(options.data), make_accelerator(options.run))


def train_steps(options: Options) -> Run:
    """Train as the loop of a run does, up to max_steps; its evaluation says nothing."""
    with mock.patch.object(Evaluator, "selection_scores", lambda self: NOTHING):
        run = make_run(options)
        with run.make_loader() as loader:
            run.progress.start(run.trainer.total_steps, run.trainer.done_steps)
            run.trainer.run(loader)
            run.progress.close()
    return run
