"""From options to a finished run: open the data, assemble the parts, train, evaluate, report."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.executors.decode_settings import decode_settings
from pipeline.executors.factory import decode_threads_per_rank
from pipeline.loader import Loader, evaluation_batches
from pipeline.plan import Plan
from pipeline.views.presets import Preset
from shards.reader import ShardSet
from train import rehearsal
from train.cautions import cautions, network_cautions
from train.checkpoints.files import check_fit, load, load_weights, newest_of
from train.checkpoints.pretrained import Pretrained, file_sha256, find_pretrained, load_pretrained
from train.datasets import open_datasets
from train.evaluation.evaluator import Evaluator
from train.execution import FINISHED, Execution
from train.features import FeatureReader, HeadAlone, cache_features, class_vectors
from train.inputs.input_builder import InputBuilder
from train.launch import (
    bare,
    check_device,
    check_launcher,
    check_trackers,
    end,
    make_accelerator,
)
from train.loop.progress import Progress
from train.loop.signals import StopRequest
from train.loop.step_graphs import Capture, make_capture
from train.loop.trainer import Trainer, TrainerParts
from train.losses.precision import autocast, full_float32, loss_scaler
from train.methods.base import MethodContext
from train.methods.method import Method
from train.methods.registry import find_method
from train.optimizers import make_optimizer, warn_of_destructive_rate
from train.options import Options
from train.run_folder import RunFolder
from train.schedules import Schedule
from train.startup import StartClock

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3

logger = logging.getLogger(__name__)

_OF_PLAN = "plan."  # what a checkpoint shares with its run because of the plan


def train(options: Options, clock: StartClock | None = None) -> int:
    """Train, evaluate and report according to the options; returns the exit status.

    clock: from a command that has measured its start-up so far.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: options, data and checkpoint do not match; nothing was changed.
        RuntimeError: another process is training in this run's folder.
    """
    clock = clock or StartClock()
    check_device(options.run.device)
    check_launcher(options.run)
    check_trackers(options.run.trackers)
    folder = RunFolder(_run_dir(options), options.run.keep_checkpoints)
    folder.check_free(options.run.resume)
    pretrained = find_pretrained(options.model)  # before any data is read: it may have to be downloaded
    # Before the data: a host that has to fetch an index first may take minutes longer than one that has it.
    accelerator = make_accelerator(options.run)
    try:
        datasets = open_datasets(options.data)
        clock.end_of("data")
        if options.run.dry_run:
            return _rehearse(options, datasets, accelerator, pretrained)
        with folder.lock() if accelerator.is_main_process else nullcontext():
            run = Run(options, folder, datasets, accelerator, pretrained)
            clock.end_of("network")
            return run.execute(clock)
    finally:
        # Networks also hold the process group. One that outlives the interpreter occasionally aborts the process (gloo,
        # torch 2.11), and the launcher then reports a finished run as failed.
        end(accelerator)


def _run_dir(options: Options) -> Path:
    assert options.run.run_dir is not None, "options.parse fills it"
    return options.run.run_dir


def _moving_average(model: nn.Module, decay: float | None) -> "ModelEmaV3 | None":
    """Of weights and batch norm's statistics. Its warm-up, in `ema_decay`'s words, forgets the initial weights."""
    if decay is None:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay, use_warmup=True)


def _rehearse(
    options: Options, datasets: dict[str, ShardSet], accelerator: Accelerator, pretrained: Pretrained | None
) -> int:
    """Take a few steps and report an estimate for the whole run; weights and files are discarded."""
    with rehearsal.trial(options) as few:
        run = Run(few, RunFolder(_run_dir(few), keep_checkpoints=1), datasets, accelerator, pretrained)
        ends, started = [], time.perf_counter()
        with run.make_loader() as loader:
            for loaded in loader:
                run.trainer.train_step(loaded)
                ends.append(time.perf_counter() - started)
    if accelerator.is_main_process:
        print(rehearsal.summary(options, run.plan.steps_per_epoch, run.parameters, ends))
    return FINISHED


class Run:
    """The parts of a run, created in an order that lets cheap checks fail first."""

    def __init__(
        self,
        options: Options,
        folder: RunFolder,
        datasets: dict[str, ShardSet],
        accelerator: Accelerator,
        pretrained: Pretrained | None = None,
    ):
        self.pretrained = pretrained
        self.options, self.folder, self.datasets, self.accelerator = options, folder, datasets, accelerator
        self.preset: Preset = options.data.make_preset(options.model)
        self.schedule = Schedule(options.schedule, options.optimizer.lr, options.run.epochs)
        self.method = self._make_method()
        self.capture: Capture | None = None
        if options.run.cuda_graphs:
            if options.optimizer.kind != "sgd" or options.run.mixed_precision == "fp16" or options.optimizer.clip_norm:
                raise ValueError(
                    "cuda_graphs only supports plain sgd steps: omit adamw, clip_norm, fp16 or cuda_graphs"
                )
            self.capture = make_capture(accelerator.device, accelerator.num_processes, self.method)
        self.checkpoint = self._found_checkpoint()
        if not self.method.objective.surveys:
            self.plan = self._make_plan()
        self._set_torch_up()
        bare_model = self.method.build_model(options.model, options.run.seed)
        if pretrained is not None:
            load_pretrained(bare_model, pretrained, self.method.stage.inherits)
        if options.model.init_from is not None:
            stage, beside = self.method.stage, None if pretrained is None else pretrained.sha256
            load_weights(bare_model, options.model.init_from, stage.inherits, stage.requires, beside)
        for name, parameter in bare_model.named_parameters():
            parameter.requires_grad_(self.method.trainable(name))
        if self.method.objective.surveys:
            self._survey(bare_model)
            self.plan = self._make_plan()
        bare_model = self._started(bare_model)
        self.parameters = sum(p.numel() for p in bare_model.parameters())
        if options.run.compile:
            # In place: the names in checkpoints stay. Sizes are fixed: a step has one, the short last one another.
            bare_model.compile(dynamic=False)
        self.model: nn.Module = accelerator.prepare_model(
            bare_model.to(accelerator.device).to(memory_format=torch.channels_last)
        )
        self.averaged = _moving_average(bare(accelerator, self.model), options.run.ema_decay)
        evaluated = self.model if self.averaged is None else self.averaged.module
        self.autocast = autocast(accelerator.device, options.run.mixed_precision)
        self.evaluator = Evaluator(options, datasets, self.preset, self.method, evaluated, accelerator, self.autocast)
        self.stop_request = StopRequest()
        self.progress = Progress(options.run.epochs, accelerator.is_main_process)
        self.trainer = self._make_trainer()
        self._resume()

    def _make_method(self) -> Method:
        device = self.accelerator.device
        input_builder = InputBuilder.create(self.preset.normalization, device)
        counts = self.datasets["train"].samples_per_class
        views = (self.preset.train, self.preset.evaluation)
        context = MethodContext(counts, *views, self.schedule, input_builder, device, self.preset.second)
        method = find_method(self.options.method_name, vars(self.options.method)).make(self.options.method, context)
        if self.options.run.accumulation > 1 and not method.objective.accumulates:
            raise ValueError(
                f"accumulation is {self.options.run.accumulation}, but a step of {self.options.method_name} needs its "
                "whole batch at once; set accumulation to 1, and use more processes or a smaller batch_size"
            )
        method.objective.check_batch_size(self.options.run.batch_size)
        return method

    def _make_plan(self) -> Plan:
        o, objective = self.options.run, self.method.objective
        rules = (objective.streams(), objective.mix_rule())
        return Plan(self.datasets, *rules, o.seed, o.batch_size, o.epochs, objective.drop_last)

    def _survey(self, model: nn.Module) -> None:
        """Give the objective what its streams depend on: from the checkpoint to resume, or from the images."""
        if self.checkpoint is not None and "method" in self.checkpoint[1]:
            path, state = self.checkpoint
            settings = {name: value for name, value in state["fit"].items() if not name.startswith(_OF_PLAN)}
            check_fit(path, settings, self._settings())
            self.method.objective.load_state_dict(state["method"])
        else:
            with full_float32():
                self.method.objective.survey(model.to(self.accelerator.device), self._images_of_classes)

    def _images_of_classes(self, classes: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        dataset, data, device = self.datasets["train"], self.options.data, self.accelerator.device
        for batch in evaluation_batches(
            dataset,
            self.preset.evaluation,
            self.options.run.batch_size,
            device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            executor=data.executor,
            decode_threads=data.decode_threads,
            sample_ids=np.flatnonzero(np.isin(dataset.index["label"], classes)),
        ):
            yield self.method.context.input_builder.plain(batch.images[0]), batch.labels

    def _started(self, model: nn.Module) -> nn.Module:
        """The network with the class vectors that its classifier starts from; the classifier alone where the rest is
        cached.
        """
        wanted, alone = self.method.stage.starts_from(), self.method.stage.trained_alone()
        if wanted is None and alone is None:
            return model
        device, seed = self.accelerator.device, self.options.run.seed
        reader = FeatureReader(
            model.to(device), self.method.context.input_builder, device, self.options.run.batch_size, self.options.data
        )
        if wanted is not None and self.checkpoint is None:  # which has the classifier
            if self.preset.plain is None:
                raise ValueError(
                    f"method.start {self.options.method.start} needs a preset that follows the backbone, such as "
                    f"backbone-mda; data.preset is {self.options.data.preset}"
                )
            vectors, known = class_vectors(wanted, self.datasets["train"], self.preset.plain, reader, seed)
            self.method.stage.start(model, vectors, known)
        if alone is None:
            return model
        views = {role: self.preset.train if role == "train" else self.preset.evaluation for role in self.datasets}
        key = f"{self._weights_key()} {self.preset.normalization}"
        self.cached = cache_features(self.datasets, views, key, reader, self.accelerator.main_process_first)
        return HeadAlone(alone, model.get_submodule(alone))

    def _weights_key(self) -> str:
        """A string that identifies the weights of a frozen backbone."""
        if self.pretrained is not None:
            return f"{self.options.model.name} {self.pretrained.sha256}"
        assert self.options.model.init_from is not None, "the stage requires one of the two"
        return f"{self.options.model.name} {file_sha256(self.options.model.init_from)}"

    def _set_torch_up(self) -> None:
        if self.options.run.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else torch refuses its matrix products
        torch.use_deterministic_algorithms(self.options.run.deterministic)
        # A run has few shapes, so trying all algorithms pays off.
        torch.backends.cudnn.benchmark = not self.options.run.deterministic
        if self.accelerator.device.type == "cpu":
            torch.set_num_threads(decode_threads_per_rank(self.accelerator.num_processes))

    def _make_trainer(self) -> Trainer:
        o = self.options.optimizer
        # Not prepared by Accelerate: its wrapper is for its own accumulation and loss scaling, which we do not use.
        # Captured steps refer to the learning rate by its address.
        lr = o.lr if self.capture is None else torch.tensor(o.lr, device=self.accelerator.device)
        bare_model = bare(self.accelerator, self.model)
        on_gpu = self.accelerator.device.type == "cuda"
        optimizer = make_optimizer(bare_model, o, self.method.stage.rate_factor, lr, fused=on_gpu)
        started = self.pretrained is not None or self.options.model.init_from is not None
        inherited = (self.method.stage.inherits(name) for name, p in bare_model.named_parameters() if p.requires_grad)
        warn_of_destructive_rate(o, started and any(inherited))
        parts = TrainerParts(
            accelerator=self.accelerator,
            method=self.method,
            model=self.model,
            optimizer=optimizer,
            schedule=self.schedule,
            plan=self.plan,
            folder=self.folder,
            stop_request=self.stop_request,
            progress=self.progress,
            autocast=self.autocast,
            evaluate=self.evaluator.selection_scores,
            averaged=self.averaged,
            capture=self.capture,
            fit=self._fit(),
            scaler=loss_scaler(self.accelerator.device, self.options.run.mixed_precision),
            clip_norm=o.clip_norm,
            stores=None if self.pretrained is None else self.method.stage.stores,
            classes={
                "names": self.datasets["train"].class_names,
                "samples": self.datasets["train"].samples_per_class.tolist(),
            },
        )
        return Trainer(parts, self.options.run)

    def _fit(self) -> dict[str, Any]:
        """Everything that determines a run's weights; equal in a run and every checkpoint it may continue from."""
        return self._settings() | {f"{_OF_PLAN}{key}": value for key, value in self.plan.fingerprint().items()}

    def _settings(self) -> dict[str, Any]:
        """The same without the plan."""
        resolved = self.options.resolved
        sections = ("model", "method", "optimizer", "schedule")
        return {
            "classes": self.datasets["train"].num_classes,
            "select_by": self.options.run.select_by,
            "preset": self.preset.record,
            **({} if self.pretrained is None else {"weights_sha256": self.pretrained.sha256}),
            "accumulation": self.options.run.accumulation,
            "mixed_precision": self.options.run.mixed_precision,
            "ema_decay": self.options.run.ema_decay,
            **{f"{name}.{key}": value for name in sections for key, value in resolved[name].items()},
        }

    def _found_checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to resume from, None to start anew."""
        choice = self.options.run.resume
        if choice in ("never", "auto"):
            return self.folder.checkpoints.load_latest() if choice == "auto" else None
        path = Path(choice)
        return newest_of(path) if path.is_dir() else (path, load(path))

    def _resume(self) -> None:
        if self.checkpoint is not None:
            self.trainer.restore(*self.checkpoint)
            logger.info("continuing from %s", self.checkpoint[0])
        elif self.options.run.resume == "auto" and self.accelerator.is_main_process:
            self.folder.metrics.restore(0)  # a run killed before its first checkpoint starts over
        self.checkpoint = None  # the run owns its tensors now

    # ---------------------------------------------------------------- execution

    def execute(self, clock: StartClock) -> int:
        """Train and report; returns the exit status."""
        with self.stop_request, self.make_loader() as loader:
            derived = self._derived(loader)
            parts = (self.options, self.datasets, self.trainer, self.evaluator, loader, derived, clock)
            return Execution(*parts).carry_out()

    def make_loader(self) -> Loader:
        """This rank's steps, from the trainer's position to the end of the run."""
        run = self.options.run
        return Loader(
            self.plan,
            self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            accumulation=run.accumulation,
            start=self.trainer.next_step,
            stop=self.trainer.end,
            executor=self.options.data.executor,
            decode_threads=self.options.data.decode_threads,
            bad_sample_budget=self.options.data.bad_sample_budget,
        )

    def _derived(self, loader: Loader) -> dict[str, Any]:
        o, world_size, device = self.options, self.accelerator.num_processes, self.accelerator.device
        threads = o.data.decode_threads or decode_threads_per_rank(world_size)
        uses_dali = "dali" in loader.executor_names.values()
        return {
            "parameters": self.parameters,
            **({} if self.pretrained is None else {"pretrained": self._describe_pretrained()}),
            "device": device.type,
            "processes": world_size,
            "micro_batch": -(-o.run.batch_size // (world_size * o.run.accumulation)),
            "steps_per_epoch": self.plan.steps_per_epoch,
            "paste_steps": sum(len(self.plan.paste_steps(epoch)) for epoch in range(self.plan.epochs)),
            **({"milestones": list(self.schedule.milestones)} if o.schedule.kind == "steps" else {}),
            **self.method.derived_options(),
            "executors": loader.executor_names,
            "decode_threads": threads,
            **({"decode": asdict(decode_settings(device, threads))} if uses_dali else {}),
            "group_rule": o.data.group_rule().describe(),
            "selected_on": self.evaluator.selection,
            "reported_on": self.evaluator.reported,
            "warnings": [
                *cautions(self.plan, self.schedule),
                *network_cautions(o.model.name, self.preset.train.size),
            ],
        }

    def _describe_pretrained(self) -> dict[str, Any]:
        assert self.pretrained is not None
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return {"name": self.pretrained.name, "sha256": self.pretrained.sha256, "trained_parameters": trained}
