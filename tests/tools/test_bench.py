"""The benchmarks run, at a size that measures nothing, and their files say what a reader needs."""

import importlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.augmentation import compiled
from tests.helpers.runs import arguments, make_data
from tools import bench
from tools.benchmarks import (
    baselines,
    bench_build,
    bench_features,
    bench_loader,
    bench_step,
    bench_train,
    measuring,
    rig,
)
from tools.benchmarks.figures import Report
from tools.benchmarks.material import TOY, Bench, photo, write_class_folders
from train.run import Run


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), None, TOY, torch.device("cpu"), cores=1)


def test_ratios_are_of_the_same_round_and_rounds_begin_with_another_variant() -> None:
    order: list[str] = []
    rates = {"slow": iter([10.0, 20.0, 40.0]), "fast": iter([20.0, 60.0, 80.0])}

    def variant(name: str) -> Callable[[], float]:
        def once() -> float:
            order.append(name)
            return next(rates[name])

        return once

    table = measuring.compare("t", "u", {name: variant(name) for name in rates}, rounds=3)
    assert order == ["slow", "fast", "fast", "slow", "slow", "fast"]
    assert table["slow"].ratios == (1.0, 1.0, 1.0)
    assert table["fast"].ratios == (2.0, 3.0, 2.0)
    assert table["fast"].rate == 60.0
    assert table.ratio("slow", "fast") == 0.5


def test_a_variant_that_fails_costs_no_other_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def broken() -> float:
        calls.append("broken")
        raise RuntimeError("no shared memory")

    report = Report("loader", {}, {}, saved_to=(tmp_path, "the command"))
    table = measuring.compare("t", "u", {"works": lambda: 2.0, "fails": broken}, rounds=3)
    report.targets.append(measuring.Target("fails / works", table.ratio("fails", "works"), 1.0))
    report.add(table)
    assert calls == ["broken"]
    assert "no shared memory" in capsys.readouterr().err
    assert report.failed == ["fails"]
    content = json.loads((tmp_path / "loader.json").read_text())  # written before anybody asked for it
    works, fails = content["tables"][0]["rows"]
    assert (works["median"], works["rates"]) == (2.0, [2.0, 2.0, 2.0])
    assert fails["median"] is None and fails["rates"] == [None, None, None]
    assert content["targets"][0]["value"] is None and not content["targets"][0]["met"]
    report.print()
    assert "not measured: fails / works" in capsys.readouterr().out


def test_a_second_table_has_the_same_variants_by_cpu_time() -> None:
    by_clock, by_cpu = measuring.compare_with_cpu("t", {"a": lambda: (10.0, 5.0), "b": lambda: (20.0, 4.0)}, rounds=2)
    assert by_clock.ratio("b", "a") == 2.0
    assert by_cpu.ratio("b", "a") == 0.8
    assert (by_clock.unit, by_cpu.unit) == ("images/s", "images/cpu-s")


def test_cpu_time_of_children_counts_while_they_run_and_after() -> None:
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint('done', flush=True); input()"
    before = measuring.cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"done\n"
        running = measuring.cpu_seconds() - before
        child.communicate(b"\n")
    ended = measuring.cpu_seconds() - before
    assert 0.35 < running < 0.8
    assert running <= ended + 0.02 < 1.0


def test_evaluation_goes_on_for_as_long_as_it_is_measured(smallest: Bench) -> None:
    batches = bench_loader._our_evaluated(smallest)
    sizes = list(itertools.islice(batches, 9))
    batches.close()
    assert sum(sizes) > smallest.scale.images
    assert baselines.pil_transform(baselines.Recipe.EVALUATED)(Image.new("RGB", (500, 375))).shape == (3, 224, 224)


def test_checksums_are_compared_alone_and_in_builds(smallest: Bench, tmp_path: Path) -> None:
    report = Report("build", {}, {})
    folder = write_class_folders(tmp_path / "files", 30, None)
    bench_build._hashing(bench_build._Build(folder, Bench(tmp_path, None, TOY, torch.device("cpu"), 1)), report)
    alone, builds = report.tables
    assert {"zlib.crc32", "hashlib.sha256"} <= {row.name for row in alone.rows}
    assert {"no crc32", "no sha256"} <= {row.name for row in builds.rows}
    assert builds.base == bench_build.AS_IT_IS


def test_warm_up_is_not_counted() -> None:
    consumed = []

    def batches() -> Iterator[int]:
        for size in (1000, 1000, 3, 4):
            consumed.append(size)
            yield size

    rate = measuring.rate_of_batches(batches(), warm_up=2, counted=2, device=torch.device("cpu"))
    assert consumed == [1000, 1000, 3, 4]
    assert rate > 0


def test_targets_know_their_direction() -> None:
    assert measuring.Target("m", 1.0, 0.9).met
    assert not measuring.Target("m", 1.0, 0.9, at_most=True).met


def test_generated_photos_resemble_those_of_imagenet(tmp_path: Path) -> None:
    data = [photo(seed) for seed in range(4)]
    assert 80_000 < sum(map(len, data)) / 4 < 130_000
    assert len(set(data)) == 4
    folder = write_class_folders(tmp_path / "made", 50, None)
    files = sorted(folder.rglob("*.jpg"))
    assert len(files) == 50
    with Image.open(files[0]) as image:
        assert 400 < max(image.size) < 600


def test_given_images_are_used_and_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.jpg"):
        write_class_folders(tmp_path / "made", 4, tmp_path / "given")
    (tmp_path / "given" / "one.JPEG").write_bytes(photo(0))
    folder = write_class_folders(tmp_path / "made", 40, tmp_path / "given")
    assert {path.read_bytes() for path in folder.rglob("*.jpg")} == {photo(0)}


@pytest.mark.parametrize("subject", ["feed", "paste", "step", "evaluate", "build"])
def test_a_benchmark_runs_and_writes_json(
    smallest: Bench, subject: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = importlib.import_module(f"tools.benchmarks.bench_{subject}").run(smallest)
    report.print()
    content = json.loads(report.write(tmp_path, "the command").read_text())
    assert content["benchmark"] == subject
    assert content["command"] == "the command"
    assert content["machine"]["cores"] >= 1
    assert "torch" in content["versions"]
    for table in content["tables"]:
        assert [row["ratio"] for row in table["rows"] if row["name"] == table["base"]] == [1.0]
        assert all(row["median"] > 0 and len(row["rates"]) >= 1 for row in table["rows"])
    assert all(target["measure"] in capsys.readouterr().out for target in content["targets"][:1])


def test_only_the_compiled_row_of_augmenting_compiles(smallest: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "COMPILED_DEVICES", {"cpu"})
    monkeypatch.setattr(compiled, "_compiled", cache(partial(torch.compile, dynamic=False, backend=backend)))
    operations = bench_loader.JITTERED_224.operations
    assert bench_loader.augmenting_rate(smallest, operations, eager=True) > 0
    assert not graphs
    assert bench_loader.augmenting_rate(smallest, operations, eager=False) > 0
    assert graphs
    assert [[row.name for row in table.rows] for table in bench_loader.compare_augmenting(smallest)] == 2 * [
        [bench_loader.EAGER, bench_loader.COMPILED]
    ]


def test_what_only_a_gpu_measures_of_the_step_is_wired(smallest: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but compiling and capturing: a small batch, on the CPU."""
    made = []

    def eager_run(
        bench: Any, model: torch.nn.Module, recipe: Any, batch_size: int, mixed_precision: Any, **choice: Any
    ) -> Any:
        made.append((model, batch_size, mixed_precision, choice))
        return rig.make_run(bench, model, recipe, batch_size, mixed_precision=mixed_precision)

    monkeypatch.setattr(bench_step, "make_run", eager_run)
    monkeypatch.setattr(bench_step, "_CAPTURING", 1)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: None)
    report = Report("step", {}, {})
    ours = rig.make_run(smallest, "resnet32", "cifar", smallest.scale.batch_size)
    bench_step._gpu_tables(smallest, report, ours, count=2)
    assert made == [
        ("resnet32", smallest.scale.images // 4, "bf16", choice)
        for choice in (
            {},
            {"compile": "true"},
            {"cuda_graphs": "true"},
            {"compile": "true", "cuda_graphs": "true"},
        )
    ]
    assert [len(table.rows) for table in report.tables] == [4, 4]
    assert [target.limit for target in report.targets] == [3.0, 30, 1.4, 1.15]
    assert len(report.notes["milliseconds_a_small_step"]) == 4


def test_what_only_a_gpu_measures_of_training_is_wired(smallest: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, str]] = []

    def eager_run(bench: Bench, model: str, preset: str, batch_size: int, **choice: str) -> Run:
        made.append(choice)
        return rig.make_run(bench, "resnet32", "cifar", batch_size)

    monkeypatch.setattr(bench_train, "make_run", eager_run)
    report = Report("train", {}, {})
    bench_train._add_compiled(smallest, report, "resnet50", 6, 1)
    assert made == [{"mixed_precision": "bf16", "compile": "true"}]
    assert [row.name for row in report.tables[0].rows] == [bench_train.SYNTHETIC, bench_train.SHARDS]
    rate, hours = report.targets[1].value, report.targets[2].value
    assert rate * hours * 3600 == pytest.approx(100 * 115_846)


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "tables"), [("loader", 7), ("train", 1), ("startup", 0)])
def test_a_benchmark_of_many_processes_runs(smallest: Bench, subject: str, tables: int) -> None:
    report = importlib.import_module(f"tools.benchmarks.bench_{subject}").run(smallest)
    assert len(report.tables) == tables


def test_every_subject_of_the_command_exists() -> None:
    for subject in bench.SUBJECTS:
        assert callable(importlib.import_module(f"tools.benchmarks.bench_{subject}").run)


def test_cached_features_are_measured_by_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, weights = make_data(tmp_path / "data"), tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", img_size=32).state_dict(), weights)
    tuned = {"method.name": "finetune", "method.tuned": "head", "model.name": "test_vit", "model.width": None}
    tuned |= {"model.image_size": 32, "model.weights": weights, "data.preset": "backbone-plain"}
    training = [word for word in arguments(data, tmp_path / "run", **tuned) if word != "--run_dir"]
    training.remove(str(tmp_path / "run"))
    for cached in ("false", "true"):
        assert bench_features.main(["--steps", "2", "--cached", cached, "--", *training]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["images_per_working_second"] > 0
