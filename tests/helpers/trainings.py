"""Rounds of killed trainings: killed at drawn moments, resumed, and compared with the uninterrupted run."""

import hashlib
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import timm
import torch
from safetensors.torch import save_file

from tests.helpers.processes import RANKS_END_WITHIN_SECONDS, Training, start
from tests.helpers.rounds import Round
from tests.helpers.runs import arguments, make_data, records
from train.checkpoints.files import AVERAGED, load

_POLL_SECONDS = 0.001
_STATE = ("model", AVERAGED, "optimizer", "method")  # of a checkpoint
_LONGEST_START_SECONDS = 3.0
WEIGHTS = "weights.safetensors"
TUNING: dict[str, Any] = {
    "method.name": "finetune",
    "model.name": "test_vit",  # timm's smallest transformer
    "model.width": None,
    "model.image_size": 32,
    "accumulation": 2,
    "checkpoint_every_steps": 2,
    "resume": "auto",
    "deterministic": "true",
}


@dataclass
class Trainings:
    """Trainings of one kind in a folder of their own.

    folder: an empty one. ranks: processes a run. steps: of a run.
    command: from a run's folder to its command line, which logs every step and writes checkpoints between them.
    prepare: makes what they train on in a folder "data", where it is not there anyway.
    """

    name: str
    folder: Path
    ranks: int
    steps: int
    command: Callable[[Path], list[str]]
    prepare: Callable[[Path], object] = field(default=lambda data: None)

    @classmethod
    def small(cls, name: str, folder: Path, ranks: int, **changes: Any) -> Self:
        """Of 3 epochs x 4 steps with CMO. changes: options that differ from `tests.helpers.runs.arguments`."""
        options = {"checkpoint_every_steps": 2, "resume": "auto", "deterministic": "true", **changes}
        return cls(name, folder, ranks, 12, lambda run_dir: arguments(folder / "data", run_dir, **options), make_data)

    @classmethod
    def tuning(cls, name: str, folder: Path, ranks: int, **changes: Any) -> Self:
        """Of 3 epochs x 4 steps of a small pretrained transformer. changes: of `TUNING`, by option.

        Every run has a copy of the data for itself, and so computes its cached features for itself.
        """

        def command(run_dir: Path) -> list[str]:
            data = folder / f"data-{run_dir.name}"
            if not data.exists():
                shutil.copytree(folder / "data", data)
            return arguments(data, run_dir, **{**TUNING, "model.weights": folder / "data" / WEIGHTS, **changes})

        return cls(name, folder, ranks, 12, command, _make_data_and_weights)

    @classmethod
    def of_recipe(cls, folder: Path, ranks: int, steps: int, options: list[str]) -> Self:
        """The first steps of a run of one's own, with these options of `python -m train`."""
        own = ["--max_steps", str(steps), "--log_every_steps", "1", "--checkpoint_every_steps", "4"]
        own += ["--resume", "auto", "--deterministic", "true", "--trackers", "[]"]
        name = f"{ranks} rank{'s' if ranks > 1 else ''}"
        return cls(name, folder, ranks, steps, lambda run_dir: [*options, *own, "--run_dir", str(run_dir)])

    def round(self, number: int, rng: random.Random) -> Round:
        """Kill a run one to three times, let it finish, and compare."""
        expected = self._uninterrupted()
        run_dir, log = self.folder / f"{number}", self.folder / f"{number}.log"
        kills, differences = 0, []
        for _ in range(rng.randint(1, 3)):
            training = self._start(run_dir, log)
            victims = self._kill_at_a_drawn_moment(training, run_dir, rng)
            codes = training.wait(RANKS_END_WITHIN_SECONDS)
            kills += victims
            if None in codes:
                differences.append(f"ranks {codes} ran on for {RANKS_END_WITHIN_SECONDS} s after the kill")
        codes = self._start(run_dir, log).wait()
        if codes != [0] * self.ranks:
            return Round(kills, [*differences, f"exit codes {codes}: {log.read_text()[-2000:]}"])
        return Round(kills, differences + different(expected, outcome(run_dir)))

    def _uninterrupted(self) -> dict[str, Any]:
        run_dir, log = self.folder / "straight", self.folder / "straight.log"
        if not run_dir.exists():
            self.folder.mkdir(exist_ok=True)
            self.prepare(self.folder / "data")
            codes = self._start(run_dir, log).wait()
            assert codes == [0] * self.ranks, log.read_text()
        return outcome(run_dir)

    def _start(self, run_dir: Path, log: Path) -> Training:
        return start(self.command(run_dir), log, self.ranks)

    def _kill_at_a_drawn_moment(self, training: Training, run_dir: Path, rng: random.Random) -> int:
        """How many processes were killed; 0 where the run ended before the moment came."""
        moments = (
            _step_is_done(run_dir, self.steps, rng),
            _checkpoint_is_being_written(run_dir, rng),
            _time_is_up(rng),
        )
        come = rng.choice(moments)
        all_ranks, one = rng.random() < 0.5, rng.randrange(self.ranks)
        while training.alive and not come():
            time.sleep(_POLL_SECONDS)
        if not training.alive:
            return 0
        victims = training.ranks if all_ranks else [training.ranks[one]]
        for victim in victims:
            victim.kill()
        for victim in victims:
            victim.join()
        return sum(victim.exitcode == -signal.SIGKILL for victim in victims)


def _make_data_and_weights(data: Path) -> None:
    make_data(data)
    torch.manual_seed(0)
    save_file(timm.create_model(str(TUNING["model.name"]), img_size=32).state_dict(), data / WEIGHTS)


def _step_is_done(run_dir: Path, steps: int, rng: random.Random) -> Callable[[], bool]:
    """Some moments after a drawn number of lines in metrics.jsonl, of which each step writes one."""
    path = run_dir / "metrics.jsonl"
    return _after(rng.randrange(1, steps), rng.random() * 0.05, lambda: path.stat().st_size if path.exists() else 0)


def _checkpoint_is_being_written(run_dir: Path, rng: random.Random) -> Callable[[], bool]:
    """While one of the first four checkpoints has its temporary name, or just after."""
    changes = 2 * rng.randrange(4) + 1  # each comes and goes
    return _after(changes, rng.random() * 0.005, lambda: any((run_dir / "checkpoints").glob("*.partial")))


def _time_is_up(rng: random.Random) -> Callable[[], bool]:
    """A drawn time after the start, whatever is going on: before the first step too."""
    return _after(0, rng.random() * _LONGEST_START_SECONDS, lambda: None)


def _after(changes: int, delay_seconds: float, observe: Callable[[], Any]) -> Callable[[], bool]:
    """Whether so much time has passed since the value of `observe` changed for the last of so many times."""
    last, seen, moment = observe(), 0, None

    def come() -> bool:
        nonlocal last, seen, moment
        value = observe()
        seen += value != last
        last = value
        if moment is None and seen >= changes:
            moment = time.monotonic() + delay_seconds
        return moment is not None and time.monotonic() >= moment

    return come


def outcome(run_dir: Path) -> dict[str, Any]:
    """Everything in the folder of a finished run that must not depend on interruptions."""
    result = json.loads((run_dir / "result.json").read_text())
    newest = max((run_dir / "checkpoints").glob("epoch*.pt"))
    return {
        "sha256 of the last state": state_sha256(newest),
        "sha256 of the best weights": state_sha256(run_dir / "checkpoints" / "best.pt"),
        "metrics.jsonl": records(run_dir),
        "test numbers": result["test"],
        "status": json.loads((run_dir / "status.json").read_text())["outcome"],
        "files": sorted(path.name for path in run_dir.rglob("*")),
    }


def state_sha256(checkpoint: Path) -> str:
    """Of all that training continues with: weights, their average, momenta, what the method keeps; with their names."""
    content = load(checkpoint)
    digest = hashlib.sha256()
    for name, value in _leaves({key: content[key] for key in _STATE if key in content}):
        digest.update(name.encode())
        digest.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return digest.hexdigest()


def _leaves(state: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(state, dict):
        for key, value in state.items():
            yield from _leaves(value, f"{name}.{key}")
    elif isinstance(state, list | tuple):
        yield from _leaves(dict(enumerate(state)), name)
    else:
        yield name, state


def different(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One line for each entry that is not equal."""
    shown = {key: [str(side[key])[:1000] for side in (found, expected)] for key in expected}
    return [f"{key}: {a}, expected {b}" for key, (a, b) in shown.items() if found[key] != expected[key]]
