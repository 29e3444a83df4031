"""One live line of a training run; without a terminal, a line every half minute and one per epoch."""

import sys
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

# Without a terminal: the first line soon, because it estimates the total time, then one at intervals.
FIRST_LINE_SECONDS, LINE_SECONDS = 5.0, 30.0
_FIRST_STEPS = 3  # the first steps wait for the first batches and for kernel selection


def duration(seconds: float) -> str:
    """As text: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class Progress:
    """Shows epoch, loss, learning rate, images/s, share of time waiting for data, GPU memory and time left.

    Rates cover only this process's steps, so a resumed run does not count earlier ones.
    """

    def __init__(self, epochs: int, enabled: bool):
        self._epochs, self.enabled = epochs, enabled
        self._bar: tqdm | None = None
        self._total = self._done = self._steps = 0
        self._next_line = FIRST_LINE_SECONDS
        self._first_step_at: float | None = None
        self._first_step_done: Callable[[], None] | None = None
        self._images = 0
        self._wait_seconds = 0.0
        self._started = time.perf_counter()
        self.loss: float | None = None

    def start(self, total_steps: int, done_steps: int, first_step_done: Callable[[], None] | None = None) -> None:
        """Show the line, if there is a terminal; the last argument is called after one step."""
        self._first_step_done = first_step_done
        if self.enabled and sys.stderr.isatty():
            line = "{desc} {percentage:3.0f}%|{bar:12}| {elapsed}<{remaining}{postfix}"
            self._bar = tqdm(total=total_steps, initial=done_steps, dynamic_ncols=True, bar_format=line)
        self._total, self._done = total_steps, done_steps
        self.reset()

    def step(self, epoch: int, lr: float, images: int, wait_seconds: float) -> None:
        """Count an optimizer step of `images` samples over all ranks."""
        if self._first_step_done is not None:
            self._first_step_done()
            self._first_step_done = None
        self._images += images
        self._wait_seconds += wait_seconds
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {epoch + 1}/{self._epochs}", refresh=False)
            self._bar.set_postfix_str(self._summary(lr), refresh=False)
            self._bar.update()
        self._done, self._steps = self._done + 1, self._steps + 1
        if self.enabled:
            self._line_now_and_then(epoch, lr)

    def _line_now_and_then(self, epoch: int, lr: float) -> None:
        """Say how far the run is; where a live line does, only once what the whole of it takes."""
        now = time.perf_counter()
        if self._first_step_at is None:
            self._first_step_at, self._steps = now, 0
        elapsed = now - self._first_step_at
        if self._steps < _FIRST_STEPS or elapsed < self._next_line:
            return
        is_first = self._next_line == FIRST_LINE_SECONDS
        self._next_line = elapsed + LINE_SECONDS
        left = duration((self._total - self._done) * elapsed / self._steps)
        if is_first:
            self.epoch_line(
                f"{self._total:,} steps in total; about {left} left (from the first {self._steps}), plus evaluations"
            )
        if self._bar is None:
            share = 100 * self._done / max(self._total, 1)
            self.epoch_line(
                f"epoch {epoch + 1}/{self._epochs}, step {self._done:,}/{self._total:,} ({share:.0f} % of the run): "
                f"{self._summary(lr)}, {left} left"
            )

    def rates(self) -> dict[str, float]:
        """images_per_second over all ranks and data_wait_share (0–1) since the last `reset`."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        return {"images_per_second": self._images / seconds, "data_wait_share": self._wait_seconds / seconds}

    def reset(self) -> None:
        """Restart the rates, at the start of an epoch."""
        self._images, self._wait_seconds, self._started = 0, 0.0, time.perf_counter()

    def epoch_line(self, text: str) -> None:
        """Print a permanent line."""
        if self.enabled:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Restore the terminal."""
        if self._bar is not None:
            self._bar.close()

    def _summary(self, lr: float) -> str:
        rates = self.rates()
        parts = [f"loss {self.loss:.3f}"] if self.loss is not None else []
        parts += [
            f"lr {lr:.3g}",
            f"{rates['images_per_second']:.0f} images/s",
            f"data wait {100 * rates['data_wait_share']:.0f}%",
        ]
        if torch.cuda.is_initialized():
            parts.append(f"GPU {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        return ", ".join(parts)
