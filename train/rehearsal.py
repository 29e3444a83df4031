"""`--dry_run`: estimates what a run will take from its first steps, without leaving files behind."""

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
    """The options for a run of a few steps in a temporary folder."""
    with tempfile.TemporaryDirectory() as scratch:
        steps = min(_WARM_UP + _TIMED, options.run.max_steps or _WARM_UP + _TIMED)
        run = replace(options.run, run_dir=Path(scratch), resume="never", max_steps=steps)
        yield replace(options, run=run)


def summary(options: Options, steps_per_epoch: int, parameters: int, ends: Sequence[float]) -> str:
    """An estimate for the whole run.

    Args:
        ends: when each step finished, in seconds after the start.
    """
    run = options.run
    side = options.data.make_preset(options.model).train.size
    planned = run.epochs * steps_per_epoch
    steps = min(planned, run.max_steps or planned)
    timed = ends[_WARM_UP - 1 :] if len(ends) > _WARM_UP else [0.0, *ends]
    seconds = max((timed[-1] - timed[0]) / (len(timed) - 1), 1e-9)
    return "\n".join(
        [
            "dry run: all options and data are consistent; nothing was written",
            f"  network   {options.model.name}, {parameters:,} parameters, {side} pixels",
            f"  steps     {steps:,} of {run.batch_size} images: {run.epochs} epochs of {steps_per_epoch:,}",
            f"  time      about {duration(steps * seconds)} of training, estimated from the first {len(ends)} steps "
            f"({run.batch_size / seconds:.0f} images/s); plus evaluations",
            f"  memory    {peak_memory_gb():.1f} GB so far",
            f"  folder    {run.run_dir}",
        ]
    )
