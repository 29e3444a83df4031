"""tools.sweep: what it runs, what it does not run again, what it prints."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tools import sweep
from tools.paper_tables import Row, Table, read_tables

ROWS = (
    Row("Plain", "cifar100-lt/ce", {"all": 38.6, "few": 8.7}),
    Row("Pasted", "cifar100-lt/ce-cmo", {"all": 43.9}, {"method.weighted_alpha": 2.0}, note="a note"),
    Row("Pasted again", "cifar100-lt/ce-cmo", {"all": 43.9}, {"method.weighted_alpha": 2.0}),
    Row("Second stage", "imagenet-lt/crt", {"all": 47.3}, first_stage="imagenet-lt/ce", source="copied"),
)


def option(command: Sequence[str], name: str) -> str:
    return next(part.removeprefix(f"--{name}=") for part in command if part.startswith(f"--{name}="))


class Trainer:
    """Stands for `python -m train`: writes what a finished run leaves; `statuses` says how the next ones end."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.statuses: list[int] = []

    def __call__(self, command: Sequence[str]) -> int:
        self.commands.append(list(command))
        status = self.statuses.pop(0) if self.statuses else 0
        run_dir = Path(option(command, "run_dir"))
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run_dir / "checkpoints" / "epoch0003-step000000.pt").touch()
        if status == 0:
            seed = int(option(command, "seed"))
            scores = {"all": 40.0 + 2 * seed, "many": 60.0, "medium": None, "few": 10.0}
            scores |= {"expert0": 30.0, "expert1": 36.0 + seed, "expert2": 35.0}
            (run_dir / "result.json").write_text(json.dumps({"test": {"last": scores, "best": scores}}))
        return status

    @property
    def runs(self) -> list[str]:
        return [Path(option(command, "run_dir")).name for command in self.commands]


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    stands_in = Trainer()
    monkeypatch.setattr(sweep, "_wait_for", stands_in)
    monkeypatch.setattr(sweep, "read_tables", lambda: {"99": Table("a table", "A Paper (1999)", ROWS, ())})
    return stands_in


def test_rows_become_runs_and_runs_become_a_table(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--rows", "P*", "--seeds", "0", "1", "--out", str(tmp_path), "--set", "epochs=20", "device=cpu"]
    assert sweep.main(command) == 0
    pasted = "cifar100-lt-ce-cmo-weighted_alpha=2.0"
    assert trainer.runs == [f"{name}-seed{seed}" for seed in (0, 1) for name in ("cifar100-lt-ce", pasted)]
    first = trainer.commands[1]
    assert option(first, "method.weighted_alpha") == "2.0"
    assert (option(first, "epochs"), option(first, "device"), option(first, "resume")) == ("20", "cpu", "auto")
    assert Path(option(first, "recipe")).is_file()
    printed = capsys.readouterr().out
    assert "| Plain | 2 | 41.0 ± 1.4 | 60.0 ± 0.0 | – | 10.0 ± 0.0 | 38.6 | – | – | 8.7 | paper |  |" in printed
    assert "| Pasted | 2 | 41.0 ± 1.4 |" in printed
    assert "every run with epochs=20, device=cpu" in printed
    assert "All (measured)" in printed
    assert "All (published)" in printed
    assert "Published: A Paper (1999), or as given in the source column." in printed
    assert (tmp_path / "tables.md").read_text() in printed


def test_a_row_of_a_single_expert_shows_the_best_one_alone(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = Row("Together", "cifar100-lt/ncl", {"all": 54.2})
    alone = Row("Alone", "cifar100-lt/ncl", {"all": 53.3}, single_expert=True)
    monkeypatch.setattr(sweep, "read_tables", lambda: {"ncl": Table("a table", "A Paper", (together, alone), ())})
    assert sweep.main(["--seeds", "0", "2", "--out", str(tmp_path)]) == 0
    assert trainer.runs == ["cifar100-lt-ncl-seed0", "cifar100-lt-ncl-seed2"]
    printed = capsys.readouterr().out
    assert "| Together | 2 | 42.0 ± 2.8 | 60.0 ± 0.0 | – | 10.0 ± 0.0 | 54.2 |" in printed
    assert "| Alone | 2 | 37.0 ± 1.4 | – | – | – | 53.3 |" in printed


def test_an_interrupted_sweep_continues_where_it_was(trainer: Trainer, tmp_path: Path) -> None:
    trainer.statuses = [0, sweep.PREEMPTED]
    command = ["--rows", "P*", "--out", str(tmp_path)]
    assert sweep.main(command) == sweep.PREEMPTED
    assert len(trainer.runs) == 2
    assert sweep.main(command) == 0
    assert trainer.runs[2:] == [trainer.runs[1]]
    assert sweep.main(command) == 0
    assert len(trainer.runs) == 3


def test_a_failed_run_is_told_and_the_others_go_on(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.statuses = [3]
    assert sweep.main(["--rows", "P*", "--out", str(tmp_path)]) == 1
    assert len(trainer.runs) == 2
    captured = capsys.readouterr()
    assert "cifar100-lt-ce-seed0 (exit status 3)" in captured.err
    assert "| Plain | 0 | – |" in captured.out


def test_a_second_stage_starts_from_the_last_checkpoint_of_its_first(trainer: Trainer, tmp_path: Path) -> None:
    assert sweep.main(["--rows", "Second*", "--seeds", "5", "--out", str(tmp_path)]) == 0
    assert trainer.runs == ["imagenet-lt-ce-seed5", "imagenet-lt-crt-seed5"]
    found = Path(option(trainer.commands[1], "model.init_from"))
    assert found == tmp_path / "imagenet-lt-ce-seed5" / "checkpoints" / "epoch0003-step000000.pt"


def test_a_folder_of_runs_with_other_options_is_refused(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--rows", "Plain", "--out", str(tmp_path), "--set"]
    assert sweep.main([*command, "epochs=20"]) == 0
    assert sweep.main([*command, "epochs=30"]) == 1
    error = capsys.readouterr().err
    assert "'epochs': '20'" in error
    assert "'epochs': '30'" in error
    assert len(trainer.runs) == 1


def test_printing_runs_nothing(trainer: Trainer, tmp_path: Path) -> None:
    assert sweep.main(["--print-only", "--out", str(tmp_path)]) == 0
    assert not trainer.commands


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--tables", "3"], "no table 3; there are 99"),
        (["--rows", "Q*"], "no row matches 'Q*'; there are Plain; Pasted"),
        (["--set", "epochs"], "expected NAME=VALUE"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    assert sweep.main([*command, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert not trainer.commands


def signal_this_process(number: signal.Signals, when: Path) -> None:
    """Send it as soon as the file is there."""
    while not when.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("status", [sweep.PREEMPTED, 1, 0], ids=["preempted", "a launcher's status", "just finished"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_reaches_the_run_once_and_stops_the_sweep_however_the_run_ends(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    ready, received = tmp_path / "ready", tmp_path / "received"
    child = (
        "import signal, sys, time, pathlib\n"
        f"def handle(*_):\n    open({str(received)!r}, 'a').write('x'); time.sleep(0.3); sys.exit({status})\n"
        f"signal.signal({int(number)}, handle); pathlib.Path({str(ready)!r}).touch(); time.sleep(30)\n"
    )

    handler: Callable[..., object] | int | None = signal.getsignal(number)
    threading.Thread(target=signal_this_process, args=(number, ready)).start()
    assert sweep._wait_for([sys.executable, "-c", child]) == sweep.PREEMPTED
    assert received.read_text() == "x"
    assert signal.getsignal(number) == handler


def test_no_row_is_started_after_a_stop_signal_that_the_run_did_not_survive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As while the run is importing: nothing handles the signal yet."""
    ready = tmp_path / "ready"
    child = f"import time, pathlib\npathlib.Path({str(ready)!r}).open('a').write('x'); time.sleep(30)\n"
    monkeypatch.setattr(sweep.Sweep, "command", lambda *_: [sys.executable, "-c", child])
    threading.Thread(target=signal_this_process, args=(signal.SIGTERM, ready)).start()
    assert sweep.main(["--tables", "2", "--out", str(tmp_path / "runs")]) == sweep.PREEMPTED
    assert ready.read_text() == "x"
    assert "run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 3])
def test_a_run_that_nobody_stopped_keeps_its_status(status: int) -> None:
    assert sweep._wait_for([sys.executable, "-c", f"raise SystemExit({status})"]) == status


def test_an_unknown_key_of_a_row_names_its_table(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text(
        '"7":\n  title: t\n  paper: p\n  rows:\n    - {name: a, recipe: b, published: {all: 1}, recipes: c}\n'
    )
    with pytest.raises(ValueError, match=r"table 7: .*recipes"):
        read_tables(path)


def test_a_table_without_a_paper_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tables.yaml"
    path.write_text('"7":\n  title: t\n  rows: []\n')
    with pytest.raises(ValueError, match="table 7 has no paper"):
        read_tables(path)


def test_all_tables_by_name_are_all_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--tables", "all", "--dry-run"]) == 0
    everything = capsys.readouterr().out
    assert sweep.main(["--dry-run"]) == 0
    assert capsys.readouterr().out == everything
