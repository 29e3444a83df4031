"""`--dry_run`: what a run is going to take, from its first steps, without leaving anything behind."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from train.evaluation.run_report import peak_memory_gb
from train.loop.progress import duration
from train.options import Options

_WARM_UP, _TIMED = 2, 5  # steps


@contextmanager
def trial(options: Options) -> Iterator[Options]:
    """The options of a run of a few steps in a folder that is removed again."""
    with tempfile.TemporaryDirectory() as scratch:
        steps = min(_WARM_UP + _TIMED, options.run.max_steps or _WARM_UP + _TIMED)
        run = replace(options.run, run_dir=Path(scratch), resume="never", max_steps=steps)
        yield replace(options, run=run)


def summary(options: Options, steps_per_epoch: int, parameters: int, ends: Sequence[float]) -> str:
    """What the whole run takes.

    Args:
        ends: when each of the steps taken was done, in seconds after the start.
    """
    run = options.run
    side = options.data.make_preset(options.model).train.size
    planned = run.epochs * steps_per_epoch
    steps = min(planned, run.max_steps or planned)
    timed = ends[_WARM_UP - 1 :] if len(ends) > _WARM_UP else [0.0, *ends]
    seconds = max((timed[-1] - timed[0]) / (len(timed) - 1), 1e-9)
    return "\n".join(
        [
            "dry run: everything fits together; nothing was written",
            f"  network   {options.model.name}, {parameters:,} parameters, {side} pixels",
            f"  steps     {steps:,} of {run.batch_size} images: {run.epochs} epochs of {steps_per_epoch:,}",
            f"  time      about {duration(steps * seconds)} of training, by the first {len(ends)} steps "
            f"({run.batch_size / seconds:.0f} images/s); evaluations come on top",
            f"  memory    {peak_memory_gb():.1f} GB so far",
            f"  folder    {run.run_dir}",
        ]
    )
