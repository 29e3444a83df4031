"""Carrying a run out: what it says at the start, how it ends, and the final report."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.loader import Loader
from shards.reader import ShardSet
from train.checkpoints.files import load, load_stored_part
from train.evaluation import run_report
from train.evaluation.evaluator import Evaluator
from train.launch import start_trackers
from train.loop.trainer import NonFiniteLossError, PreemptedError, Trainer
from train.options import Options
from train.startup import StartClock

logger = logging.getLogger(__name__)

# Exit statuses of `python -m train`. A launcher of several processes replaces them by its own; see status.json.
FINISHED, FAILED, NON_FINITE, PREEMPTED = 0, 1, 3, 75  # 75: EX_TEMPFAIL, "try again later"


@dataclass
class Execution:
    """One run from its first step to its report.

    Args:
        derived: what follows from the options and the data, to be printed and saved.
        clock: measures the start of the run.
    """

    options: Options
    datasets: dict[str, ShardSet]
    trainer: Trainer
    evaluator: Evaluator
    loader: Loader
    derived: dict[str, Any]
    clock: StartClock

    def __post_init__(self) -> None:
        parts = self.trainer.parts
        self.folder, self.accelerator = parts.folder, parts.accelerator
        self.progress, self.stop_request, self.plan = parts.progress, parts.stop_request, parts.plan

    def carry_out(self) -> int:
        """Train and report; returns the exit status."""
        self._announce()
        self.clock.end_of("loader")
        with self._failures_in_status():
            status = self._train()
            if status == FINISHED:
                self._report()
        return status

    def _announce(self) -> None:
        if self.accelerator.is_main_process:
            start_trackers(self.accelerator, self.options.run.trackers)
            self.folder.prepare(self.options.resolved, self.derived)
            self.folder.write_status("running", pid=os.getpid())
            run_report.print_options(self.options.resolved, self.derived)
            for warning in self.derived["warnings"]:
                logger.warning("%s", warning)
        self.accelerator.wait_for_everyone()

    def _train(self) -> int:
        def first_step_done() -> None:
            self.clock.end_of("first step")
            logger.info("%s", self.clock.line())

        try:
            self.progress.start(self.trainer.total_steps, self.trainer.done_steps, first_step_done)
            self.trainer.run(self.loader)
            if self.trainer.ended_early:
                logger.info("no better epoch in %d evaluations: stopping early", self.options.run.patience)
        except PreemptedError:
            logger.info(
                "stopped; the state is in %s. The same command with --resume auto continues from there",
                self.folder.checkpoints.positions()[-1][1] if self.accelerator.is_main_process else "its folder",
            )
            self._write_status("preempted", signal=self.stop_request.signal)
            return PREEMPTED
        except NonFiniteLossError as error:
            logger.error("%s", error)
            self._write_status("non-finite", **error.details)
            return NON_FINITE
        finally:
            self.progress.close()
        return FINISHED

    @contextmanager
    def _failures_in_status(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            try:
                self._write_status("failed", error=f"{type(error).__name__}: {error}")
            except OSError as second:  # a full disk has no space for this either; the first error is the cause
                logger.error("%s: status.json could not be written: %s", self.folder.path, second)
            raise

    def _write_status(self, outcome: str, **details: Any) -> None:
        if self.accelerator.is_main_process:
            position = self.trainer.position
            self.folder.write_status(outcome, **{"epoch": position.epoch, "step": position.step, **details})

    def _report(self) -> None:
        """Test numbers of the last and the best weights, then all reports."""
        history = self.trainer.history
        last, details = self.evaluator.final_scores()
        best = last
        if history.best != history.last:
            best_weights = load(self.folder.checkpoints.best)["model"]
            load_stored_part(self.trainer.evaluated_model, best_weights, self.trainer.parts.stores)
            best, _ = self.evaluator.final_scores()
        if self.accelerator.is_main_process:
            summary = run_report.RunSummary(
                options=self.options,
                derived=self.derived,
                folder=self.folder,
                datasets=self.datasets,
                plan=self.plan,
                history=history,
                last=last,
                best=best,
                details=details,
                replaced_samples={name: bad.reasons for name, bad in self.loader.bad_samples.items() if bad.reasons},
                startup=self.clock.record(),
            )
            run_report.write_result(summary)
            self._write_status("finished")
            run_report.decorate_run(summary)
        self.accelerator.wait_for_everyone()
