"""The training loop: steps, evaluations and checkpoints in order, on one device or many.

Everything that has to survive a restart is in a checkpoint; everything random is in the plan. So a killed run continues
with exactly the same steps, and its folder ends up as if nothing had happened.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.loader import LoadedStep
from pipeline.plan import Plan, Position
from pipeline.transfer import values_to_device
from train.checkpoints.files import AVERAGED, check_fit, load_stored_part, save, stored_part
from train.launch import bare
from train.loop.meters import Meter, micro_batch_sums
from train.loop.progress import Progress
from train.loop.signals import SharedFlags, StopRequest
from train.loop.step_graphs import Capture, StepGraphs
from train.methods.base import MicroPlan, MicroStep
from train.methods.method import Method
from train.optimizers import FACTOR
from train.options import RunOptions
from train.run_folder import RunFolder
from train.schedules import Schedule

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

logger = logging.getLogger(__name__)

Numbers = dict[str, float | None]


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or NaN; `details` has the location."""

    def __init__(self, message: str, details: dict[str, Any]):
        super().__init__(message)
        self.details = details


class PreemptedError(Exception):
    """A stop signal arrived; the checkpoint is written."""


@dataclass
class History:
    """A run's measurements; plain containers, because it is part of the checkpoint."""

    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    since_best: int = 0  # evaluations
    seconds: float = 0.0


@dataclass(frozen=True)
class TrainerParts:
    """The components of a trainer.

    Args:
        model: the network, wrapped for distributed training if there are several processes.
        autocast: creates the context for the network's arithmetic.
        evaluate: scores the current weights, or their average: {"validation": numbers} or {"test": numbers}. Called on
            every rank.
        averaged: moving average of the weights, which is evaluated instead of them, or None.
        capture: how whole steps are captured, for replaying steps of the same kind; None runs eagerly.
        scaler: loss scaler for float16; a step whose scaled gradients overflow is skipped.
        clip_norm: maximum norm of a step's gradients.
        stores: which tensors of the model a checkpoint stores, if a file has the others; None for all.
        fit: values that a checkpoint must share with this run, see `checkpoint.check_fit`.
        classes: {"names", "samples"} of the training set, stored in checkpoints for users of the network.
    """

    accelerator: Accelerator
    method: Method
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    plan: Plan
    folder: RunFolder
    stop_request: StopRequest
    progress: Progress
    autocast: Callable[[], AbstractContextManager[Any]]
    evaluate: Callable[[], dict[str, Numbers]]
    averaged: "ModelEmaV3 | None" = None
    capture: Capture | None = None
    fit: dict[str, Any] = field(default_factory=dict)
    stores: Callable[[str], bool] | None = None
    scaler: torch.amp.GradScaler | None = None
    clip_norm: float | None = None
    classes: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """Runs a plan from a position to the end."""

    def __init__(self, parts: TrainerParts, options: RunOptions):
        self.parts, self.options = parts, options
        self.position = Position(0, 0)
        self.history = History()
        device = parts.accelerator.device
        self._epoch_meter, self._window_meter = Meter(device), Meter(device)
        self._flags = SharedFlags(device)
        self._first_rank = parts.accelerator.is_main_process
        self._started = self._saved = time.monotonic()
        self._lr = 0.0
        self._tracker_failed = False
        self._take_step = self._device_step if parts.capture is None else StepGraphs(self._device_step, parts.capture)

    def run(self, steps: Iterable[LoadedStep]) -> History:
        """Train on the loaded steps, which start at `position`, until the end of the plan or `max_steps`.

        Raises:
            PreemptedError: after a stop signal, with a checkpoint written.
            NonFiniteLossError: the last checkpoint has weights from before.
        """
        steps_per_epoch = self.parts.plan.steps_per_epoch
        if self.position.step:
            self._set_lr(self.position.epoch, self.position.step - 1)
        # Stopped between the last step and the evaluation.
        if self.position.step == steps_per_epoch or self._ends_unevaluated():
            self._end_epoch(ends_run=self.done_steps == self.total_steps)
        for loaded in steps if not self.ended_early else ():
            epoch, step = loaded.whole.epoch, loaded.whole.step
            if step == 0 or self.parts.schedule.options.per == "step":
                self._set_lr(epoch, step)
            self.train_step(loaded)
            self.position = Position(epoch, step + 1)
            ends_epoch, ends_run = step + 1 == steps_per_epoch, self.done_steps == self.total_steps
            self._log_step(flush=ends_epoch or ends_run)
            self._act_on_flags(drain=ends_epoch or ends_run)
            if ends_epoch or ends_run:
                self._end_epoch(ends_run)
            if ends_run or self.ended_early:
                break
        self.history.seconds = self._seconds()
        return self.history

    @property
    def ended_early(self) -> bool:
        """Whether the run's patience is exhausted; all ranks, and a resumed run, have the same numbers."""
        patience = self.options.patience
        return patience is not None and self.history.since_best >= patience and self.done_steps < self.total_steps

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        planned = self.options.epochs * self.parts.plan.steps_per_epoch
        return min(planned, self.options.max_steps or planned)

    @property
    def done_steps(self) -> int:
        """Optimizer steps before `position`."""
        return self.position.epoch * self.parts.plan.steps_per_epoch + self.position.step

    @property
    def next_step(self) -> Position:
        """The step at which the loader has to start."""
        return Position(*divmod(self.done_steps, self.parts.plan.steps_per_epoch))

    @property
    def end(self) -> Position:
        """The step before which the loader has to stop."""
        return Position(*divmod(self.total_steps, self.parts.plan.steps_per_epoch))

    def _ends_unevaluated(self) -> bool:
        """Whether `max_steps` stopped the run within an epoch, whose numbers do not exist yet."""
        evaluated = (self.history.last or {}).get("epoch") == self.position.epoch
        return self.position.step > 0 and self.done_steps == self.total_steps and not evaluated

    # ---------------------------------------------------------------- a step

    def train_step(self, loaded: LoadedStep) -> None:
        """One optimizer step on this rank's part of the global batch."""
        p = self.parts
        sums = self._take_step(self._micro_steps(loaded))
        if p.averaged is not None:
            p.averaged.update(self.bare_model, self.done_steps + 1)
        for meter in (self._epoch_meter, self._window_meter):
            meter.add(sums, self._first_rank)
        stop = p.stop_request.signal is not None
        whole = loaded.whole
        self._flags.post(whole.epoch, whole.step, self._watched(sums[0]), stop, self._checkpoint_due())
        p.progress.step(whole.epoch, self._lr, whole.sizes["original"], loaded.wait_seconds)

    def _watched(self, loss: Tensor) -> Tensor:
        """The loss that must be finite. A loss scaler handles overflows by reducing the scale, down to its minimum."""
        scaler = self.parts.scaler
        return loss if scaler is None or scaler.get_scale() < 1 else torch.nan_to_num(loss)

    def _micro_steps(self, loaded: LoadedStep) -> list[MicroStep]:
        """This rank's micro-batches with everything that the method needs to know about them, on the device."""
        method, device = self.parts.method, self.parts.accelerator.device
        return [
            MicroStep(
                micro.batches,
                values_to_device(method.objective.values(MicroPlan.of(loaded.whole, micro)), device),
                loaded.whole.sizes["original"],
            )
            for micro in loaded.micro_batches
        ]

    def _device_step(self, steps: Sequence[MicroStep]) -> Tensor:
        """Forward, backward, optimizer; returns the sums of `micro_batch_sums`. Independent of the step number."""
        p = self.parts
        sums = torch.zeros(3, dtype=torch.float64, device=p.accelerator.device)
        for number, step in enumerate(steps, start=1):
            with nullcontext() if number == len(steps) else p.accelerator.no_sync(p.model):
                with p.autocast():
                    output = p.method.loss(p.model, step)
                # Shares of the global loss are summed over ranks, but the distributed wrapper averages gradients.
                loss = output.loss * p.accelerator.num_processes
                p.accelerator.backward(loss if p.scaler is None else p.scaler.scale(loss))
            original = step.batches["original"]
            sums += micro_batch_sums(output.loss, output.logits, original.labels, original.weights)
        p.method.objective.before_optimizer(self.bare_model)
        self._apply_gradients()
        p.optimizer.zero_grad(set_to_none=True)
        return sums

    def _apply_gradients(self) -> None:
        p = self.parts
        if p.scaler is not None and p.clip_norm is not None:
            p.scaler.unscale_(p.optimizer)
        if p.clip_norm is not None:
            nn.utils.clip_grad_norm_([q for q in self.bare_model.parameters() if q.grad is not None], p.clip_norm)
        if p.scaler is None:
            p.optimizer.step()
        else:
            p.scaler.step(p.optimizer)
            p.scaler.update()

    def _log_step(self, flush: bool) -> None:
        if self.done_steps % self.options.log_every_steps and not flush:
            return
        window = self._window_meter.read()
        self._window_meter.reset()
        self.parts.progress.loss = window["loss"]
        last = {"epoch": self.position.epoch, "step": self.position.step - 1}
        self._write({"kind": "steps", **last, "loss": window["loss"], "lr": self._lr})

    def _checkpoint_due(self) -> bool:
        """Only on the first rank: clocks differ, and the other ranks follow its flag."""
        o = self.options
        if not self._first_rank:
            return False
        if o.checkpoint_every_steps is not None and (self.done_steps + 1) % o.checkpoint_every_steps == 0:
            return True
        minutes = (time.monotonic() - self._saved) / 60
        return o.checkpoint_every_minutes is not None and minutes > o.checkpoint_every_minutes

    def _act_on_flags(self, drain: bool) -> None:
        """Save, stop or fail, as agreed by the ranks."""
        verdict = self._flags.read(drain)
        if verdict is None:
            return
        if verdict.non_finite:
            raise self._non_finite(verdict.epoch, verdict.step)
        self.save_checkpoint()
        if verdict.stop:
            raise PreemptedError

    def _non_finite(self, epoch: int, step: int) -> NonFiniteLossError:
        ids = self.parts.plan.stream_step("original", epoch, step).sample_ids.tolist()
        lr = self.parts.schedule.lr(epoch)
        return NonFiniteLossError(
            f"the loss is not finite at epoch {epoch + 1}, step {step + 1}, learning rate {lr:g}, samples {ids[:8]} … "
            "(all in status.json). The checkpoints have weights from before: resume from one with a lower "
            "optimizer.lr, or without mixed_precision",
            {"epoch": epoch, "step": step, "lr": lr, "sample_ids": ids},
        )

    # --------------------------------------------------------------- an epoch

    def _set_lr(self, epoch: int, step: int = 0) -> None:
        self._lr = self.parts.schedule.lr_at(epoch, step, self.parts.plan.steps_per_epoch)
        for group in self.parts.optimizer.param_groups:
            rate = self._lr * group[FACTOR]
            if isinstance(group["lr"], Tensor):  # for captured steps
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _end_epoch(self, ends_run: bool) -> None:
        epoch, is_whole = self.position.epoch, self.position.step == self.parts.plan.steps_per_epoch
        if is_whole:  # `max_steps` may stop a run within an epoch; it then continues as if it had not stopped
            self.parts.method.objective.project(self.bare_model)
            # An average of weights between projections violates the bounds as they do.
            if self.parts.averaged is not None:
                self.parts.method.objective.project(self.evaluated_model)
            self.parts.method.objective.after_epoch(epoch)
        record = {"kind": "epoch", "epoch": epoch, "lr": self._lr, "train": self._epoch_meter.read()}
        record |= self.parts.progress.rates()
        self._epoch_meter.reset()
        if ends_run or (epoch + 1) % self.options.evaluate_every == 0:
            scores = self._evaluate()
            record |= scores
            self.history.last = {"epoch": epoch, **scores}
            if self.history.best is None or self._selected(scores) > self._selected(self.history.best):
                self.history.best, self.history.since_best = self.history.last, 0
                self._save_best()
            else:
                self.history.since_best += 1
        record["seconds"] = self._seconds()
        self._write(record)
        self.parts.progress.epoch_line(_epoch_line(record, self.options.epochs))
        if is_whole:
            self.position = Position(epoch + 1, 0)
        self.save_checkpoint()
        self.parts.progress.reset()

    def _evaluate(self) -> dict[str, Numbers]:
        self._share_buffers()
        self.parts.model.eval()
        scores = self.parts.evaluate()
        self.parts.model.train()
        return scores

    def _share_buffers(self) -> None:
        """Copy the first rank's batch norm running statistics to all ranks: training does not exchange them."""
        if not dist.is_initialized():
            return
        averaged = [] if self.parts.averaged is None else self.parts.averaged.module.buffers()
        for buffer in (*self.bare_model.buffers(), *averaged):
            dist.broadcast(buffer, src=0)

    def _write(self, record: dict[str, Any]) -> None:
        if not self._first_rank:
            return
        self.parts.folder.metrics.append(record)
        scalars = {k: v for k, v in record.items() if isinstance(v, float)}
        for part in (p for p in record if isinstance(record[p], dict)):
            scalars |= {f"{part}/{name}": value for name, value in record[part].items() if value is not None}
        self._track(scalars)

    def _track(self, scalars: dict[str, float]) -> None:
        """Log to trackers; one that fails (a full disk, no network) loses its curves, but never stops the run."""
        try:
            self.parts.accelerator.log(scalars, step=self.done_steps)
        except Exception as error:  # any tracker's own exception
            if not self._tracker_failed:
                logger.warning("a tracker failed, the run continues without it: %s: %s", type(error).__name__, error)
            self._tracker_failed = True

    def _seconds(self) -> float:
        return self.history.seconds + time.monotonic() - self._started

    # ------------------------------------------------------------ checkpoints

    def save_checkpoint(self) -> None:
        """Write the state at `position`; every rank must call it."""
        self._share_buffers()
        meters = {"epoch": self._epoch_meter.totals(), "window": self._window_meter.totals()}
        if self._first_rank:
            history = {**asdict(self.history), "seconds": self._seconds()}
            state = {
                "fit": self.parts.fit,
                "classes": self.parts.classes,
                "position": asdict(self.position),
                "model": stored_part(self.bare_model.state_dict(), self.parts.stores),
                "optimizer": self.parts.optimizer.state_dict(),
                "method": self.parts.method.objective.state_dict(),
                "meters": meters,
                "history": history,
                "metrics_bytes": self.parts.folder.metrics.size_bytes,
            }
            if self.parts.scaler is not None:
                state["scaler"] = self.parts.scaler.state_dict()
            if self.parts.averaged is not None:
                state[AVERAGED] = stored_part(self.evaluated_model.state_dict(), self.parts.stores)
            self.parts.folder.checkpoints.save(self.position, state)
        self._saved = time.monotonic()
        self.parts.accelerator.wait_for_everyone()

    def _save_best(self) -> None:
        if self._first_rank:
            content = {
                "fit": self.parts.fit,
                "classes": self.parts.classes,
                "model": stored_part(self.evaluated_model.state_dict(), self.parts.stores),
                "scores": self.history.best,
            }
            save(self.parts.folder.checkpoints.best, content)

    def restore(self, path: Path, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it belongs to another run; both values of everything that differs are named.
        """
        if "position" not in state:
            raise ValueError(
                f"{path}: has only weights, not a state to resume from; resume from one of the epoch….pt files next to "
                "it, or start a new run from it with --model.init_from"
            )
        check_fit(path, state["fit"], self.parts.fit)
        self.position = Position(**state["position"])
        load_stored_part(self.bare_model, state["model"], self.parts.stores)
        if self.parts.averaged is not None:
            load_stored_part(self.evaluated_model, state[AVERAGED], self.parts.stores)
        self._restore_optimizer(state["optimizer"])
        if self.parts.scaler is not None:
            self.parts.scaler.load_state_dict(state["scaler"])
        self.parts.method.objective.load_state_dict(state["method"])
        self.history = History(**state["history"])
        for name, meter in (("epoch", self._epoch_meter), ("window", self._window_meter)):
            meter.restore(state["meters"][name], self._first_rank)
        if self._first_rank:
            self.parts.folder.metrics.restore(state["metrics_bytes"])

    def _restore_optimizer(self, state: dict[str, Any]) -> None:
        """Restore momenta; the learning rates remain the run's own objects and get their values in the next epoch."""
        groups = self.parts.optimizer.param_groups
        own = [{name: group[name] for name in ("lr", FACTOR)} for group in groups]
        self.parts.optimizer.load_state_dict(state)
        for group, kept in zip(self.parts.optimizer.param_groups, own, strict=True):
            group.update(kept)

    def _selected(self, scores: dict[str, Any]) -> float:
        """The numbers compared for "best": those of the validation set, or of the test set if there is none."""
        numbers = scores.get("validation") or scores["test"]
        return numbers[self.options.select_by]

    @property
    def bare_model(self) -> nn.Module:
        """The network without the distributed wrapper."""
        return bare(self.parts.accelerator, self.parts.model)

    @property
    def evaluated_model(self) -> nn.Module:
        """The network to evaluate: that of the averaged weights, if there are any."""
        return self.bare_model if self.parts.averaged is None else self.parts.averaged.module


def _epoch_line(record: dict[str, Any], epochs: int) -> str:
    line = f"epoch {record['epoch'] + 1}/{epochs}: lr {record['lr']:.3g}, train loss {record['train']['loss']:.4f}"
    for split in ("validation", "test"):
        if split in record:
            groups = ", ".join(
                f"{name} {record[split][name]:.1f}"
                for name in ("all", "many", "medium", "few")
                if record[split][name] is not None
            )
            line += f"; {split} {groups}"
    return f"{line}; {record['images_per_second']:.0f} images/s, data wait {100 * record['data_wait_share']:.0f}%"
