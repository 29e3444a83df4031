"""The page of a run without a browser: what it says of complete, incomplete and different runs, and its size."""

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from shards.class_counts import CMO_RULE, shot_groups
from tests.helpers.run_folders import NASTY, class_names, make_folder
from tests.helpers.runs import options
from tools.report import main
from train.evaluation import pictures
from train.evaluation.class_blocks import MAX_BLOCKS, blocks_by_size, summed, worst_pairs
from train.evaluation.page import headline
from train.evaluation.page import render as render_module
from train.evaluation.page.render import PAGE, render
from train.evaluation.page.reproduce import command_line
from train.evaluation.page.run_data import read_run
from train.options import parse
from train.run import FINISHED, train


def page(*folders: Path) -> str:
    return render([read_run(folder) for folder in folders])


def shown(text: str) -> list[dict]:
    """What the scripts of a page draw."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


class Addresses(HTMLParser):
    """What the elements of a page point to, and which elements there are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found |= {value for name, value in attrs if name in ("src", "href", "action", "data") and value}


def test_a_page_has_no_address_to_load_from_and_names_stay_text(tmp_path: Path) -> None:
    text = page(make_folder(tmp_path / "run-seed0", 10))
    addresses = Addresses()
    addresses.feed(text)
    assert {address.split(",")[0] for address in addresses.found} <= {"#main", "data:", "data:image/jpeg;base64"}
    assert "b" not in addresses.tags
    assert "sourceMappingURL" not in text
    assert set(NASTY) <= set(shown(text)[0]["classes"]["name"])
    assert "&lt;b&gt;bold&lt;/b&gt;" in text  # among the worst pairs, escaped


@pytest.mark.parametrize(("classes", "megabytes"), [(1, 2), (1000, 10), (8142, 10)])
def test_a_page_stays_small(classes: int, megabytes: int, tmp_path: Path) -> None:
    text = page(make_folder(tmp_path / "run-seed0", classes))
    assert len(text.encode()) < megabytes * 1e6
    assert len(shown(text)[0]["classes"]["name"]) == classes


@pytest.mark.parametrize(
    "lost", ["result.json", "metrics.jsonl", "per_class.csv", "predictions.csv", "thumbnails.json", "pasted.png"]
)
@pytest.mark.parametrize("broken", [False, True])
def test_what_is_missing_or_broken_becomes_a_sentence(lost: str, broken: bool, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run-seed0", 10)
    if broken:
        (folder / lost).write_text("{broken")
    else:
        (folder / lost).unlink(missing_ok=True)
    text = page(folder)
    if broken or lost != "pasted.png":  # a method that does not paste has no such picture
        assert f"{lost} {'cannot be read' if broken else 'is not in the run folder'}" in text


def test_a_run_without_test_set_or_results_has_a_page(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run-seed0", 10)
    for name in ("per_class.csv", "predictions.csv", "thumbnails.json"):
        (folder / name).unlink()
    result = json.loads((folder / "result.json").read_text())
    del result["test"]
    (folder / "result.json").write_text(json.dumps(result))
    assert "There are no test results" in page(folder)
    (folder / "result.json").unlink()
    (folder / "status.json").write_text('{"outcome": "preempted"}')
    assert "the run has no results yet (status: preempted)" in page(folder)


def test_seeds_are_averaged_and_different_runs_are_not(tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / f"run-seed{seed}", 10, seed=seed) for seed in (0, 1)]
    changed = make_folder(tmp_path / "run-seed2", 10, seed=2, options={"epochs": 90, "seed": 2})
    rows = headline.rows([read_run(folder) for folder in [*folders, changed]])
    assert [(row["name"], row["seeds"], row["epochs"]) for row in rows if row["weights"].startswith("last")] == [
        ("run", "0, 1", "3"),
        ("run", "2", "90"),
    ]
    assert " ± " in rows[0]["cells"][0]
    assert " ± " not in rows[-1]["cells"][0]


def test_runs_with_other_classes_or_data_are_told_apart(tmp_path: Path) -> None:
    first = make_folder(tmp_path / "first-seed0", 10)
    second = make_folder(tmp_path / "second-seed0", 12, data={"train": {**_data(), "checksum": "c" * 64}})
    text = page(first, second)
    assert "The runs have 2 different training sets" in text
    assert "The runs have different classes" in text
    assert "different" not in " ".join(headline.differences([read_run(first)]))


def _data() -> dict:
    return {"name": "made", "split": "train", "samples": 3, "classes": 12, "imbalance_ratio": 1.0}


def test_pictures_of_classes_are_kept_once_where_runs_share_them(tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / f"run-seed{seed}", 10, seed=seed) for seed in (0, 1)]
    assert [len(run["classPictures"]) for run in shown(page(*folders))] == [10, 0]


def test_the_published_number_of_a_recipe_is_beside_the_run(tmp_path: Path) -> None:
    rows = headline.rows([read_run(make_folder(tmp_path / "cifar100-lt-ce-cmo-seed0", 10))])
    (published,) = [row for row in rows if row["published"] and "table 2" in row["name"]]
    assert published["cells"][0] == "43.9"
    assert published["epochs"] == "200"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "run-seed0", 10)
    assert main([str(folder)]) == 0
    assert (folder / PAGE).stat().st_size > 800_000
    assert main([str(folder), str(folder), "--out", str(tmp_path / "two.html")]) == 0
    assert "2 runs compared" in (tmp_path / "two.html").read_text()
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 1
    assert "not a run folder" in capsys.readouterr().err


def test_a_run_writes_its_page_and_the_command_in_it_repeats_the_options(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "it's a run"
    asked = options(data, run_dir, epochs=1, **{"data.validation": data / "test"})
    assert train(asked) == FINISHED
    (run,) = shown((run_dir / PAGE).read_text())
    assert read_run(run_dir).notes == []
    assert len(run["classPictures"]) == 4
    assert run["samplePictures"]
    assert run["pasted"]
    assert run["reliability"].keys() == {"before", "after"}
    assert sum(cell[2] for cell in run["confusion"]["cells"]) == 12
    result = json.loads((run_dir / "result.json").read_text())
    arguments = shlex.split(command_line(result["options"]).replace("\\\n", " "))[3:]
    repeated = parse(arguments).resolved
    assert {**repeated, "run_dir": None} == {**asked.resolved, "run_dir": None}


def test_decorations_that_fail_leave_the_results_and_a_warning(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(pictures, "_save", fail)
    monkeypatch.setattr(render_module, "render", fail)
    assert train(options(data, tmp_path / "run", epochs=1)) == FINISHED
    assert json.loads((tmp_path / "run" / "status.json").read_text())["outcome"] == "finished"
    assert {"result.json", "per_class.csv", "predictions.csv"} <= {path.name for path in (tmp_path / "run").iterdir()}
    for name in ("curves.png", PAGE):
        assert any(name in message and "no font" in message for message in caplog.messages)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    monkeypatch.undo()
    assert main([str(tmp_path / "run")]) == 0  # from what there is


def test_blocks_hold_every_class_once_in_the_order_of_size() -> None:
    rng = np.random.default_rng(0)
    for classes in (1, 7, 100, 101, 3000):
        counts = rng.integers(1, 400, size=classes)
        blocks = blocks_by_size(counts, shot_groups(counts, CMO_RULE))
        order = np.concatenate(blocks.members)
        assert sorted(order) == list(range(classes))
        assert (np.diff(counts[order]) <= 0).all()
        assert len(blocks.members) <= MAX_BLOCKS + 2
        for border in blocks.borders:
            assert blocks.groups[border - 1] != blocks.groups[border]
        matrix = rng.integers(3, size=(classes, classes))
        cells = summed(matrix, blocks)
        first, last = blocks.members[0], blocks.members[-1]
        assert cells[0, -1] == matrix[np.ix_(first, last)].sum()
        assert cells.sum() == matrix.sum()


def test_worst_pairs_are_those_of_a_loop() -> None:
    matrix = np.random.default_rng(1).integers(5, size=(6, 6))
    pairs = [(-int(matrix[t, p]), -matrix[t, p] / matrix[t].sum()) for t in range(6) for p in range(6) if t != p]
    found = worst_pairs(matrix, 10)
    assert [(-n, -n / matrix[t].sum()) for t, _, n in found] == sorted(pairs)[:10]
    assert all(matrix[t, p] == n for t, p, n in found)


def test_names_of_the_fixture_are_as_nasty_as_they_should() -> None:
    assert any("</script>" in name for name in class_names(10))
    assert any(len(name) > 100 for name in class_names(10))
