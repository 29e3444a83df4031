"""tools.predict: the pixels of the builder, names from the checkpoint, files that cannot be read, where it writes."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.images import ImagePolicy, check_image
from tests.helpers.image_kinds import kinds
from tests.helpers.runs import make_data, options
from tests.helpers.shard_sets import photo, small_images
from tests.helpers.short_runs import make_run
from tools import predict
from train.checkpoints.trained import load_trained
from train.loop.trainer import History

NAMES = [f"class {number}" for number in range(4)]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a best checkpoint, of an untrained network."""
    folder = tmp_path_factory.mktemp("run")
    run = make_run(options(make_data(tmp_path_factory.mktemp("data")), folder))
    run.folder.checkpoints.prepare()
    run.trainer.history = History(best={"epoch": 0})
    run.trainer._save_best()
    return folder


def predicted(run_dir: Path, *arguments: object) -> int:
    return predict.main([*map(str, arguments), "--checkpoint", str(run_dir), "--device", "cpu"])


def test_the_network_sees_the_pixels_that_a_shard_set_would_hold(run_dir: Path, tmp_path: Path) -> None:
    trained = load_trained(run_dir, torch.device("cpu"))
    for path in kinds(tmp_path / "kinds"):
        stored = check_image(path.read_bytes(), ImagePolicy())
        copy = tmp_path / f"stored.{stored.extension}"
        copy.write_bytes(stored.data)
        found, expected = (predict.evaluation_picture(file, trained) for file in (path, copy))
        assert np.array_equal(found, expected), path.name
    scaled = predict.evaluation_picture(tmp_path / "kinds" / "16.png", trained)
    assert 0 < scaled.mean() < 200  # not clipped to white


def test_what_cannot_be_read_is_listed_and_the_rest_is_predicted_with_names(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "p"
    (folder / "@eaDir").mkdir(parents=True)
    for number in range(3):
        photo(number, 32, 32).save(folder / f"{number}.png")
    for name, content in {
        "empty.jpg": b"",
        "text.png": b"hello",
        "page.jpeg": b"<html>not found</html>",
        "half.png": (folder / "0.png").read_bytes()[:300],
        "._0.png": b"fork",
        "@eaDir/0.png": b"thumbnail",
        "notes.txt": b"notes",
    }.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for name in ("p.json", "p.csv"):
        out = tmp_path / "new" / "folder" / name
        assert predicted(run_dir, folder, "--out", out, "--batch-size", 2) == predict.SKIPPED
    records = json.loads((tmp_path / "new" / "folder" / "p.json").read_text())
    bad = {Path(record["image"]).name for record in records if "error" in record}
    assert bad == {"empty.jpg", "text.png", "page.jpeg", "half.png", "gone.png"}
    good = [record for record in records if "classes" in record]
    assert [Path(record["image"]).name for record in good] == ["0.png", "1.png", "2.png"]
    assert {one["name"] for record in good for one in record["classes"]} == set(NAMES)
    assert all(one["name"] == NAMES[one["class"]] for record in good for one in record["classes"])
    rows = list(csv.DictReader((tmp_path / "new" / "folder" / "p.csv").open(encoding="utf-8")))
    assert len(rows) == 3 * 4 + 5
    assert all(f"skipped {folder / name}" in caplog.text for name in bad)
    assert "left out, not images by their suffix: 1 .txt" in caplog.text


def test_the_file_of_another_prediction_is_not_written_over(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(0, 32, 32).save(tmp_path / "a.png")
    out = tmp_path / "p.csv"
    out.write_text("precious")
    assert predicted(run_dir, tmp_path / "a.png", "--out", out) == 1
    assert "exists; give another --out, or --overwrite" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert predicted(run_dir, tmp_path / "a.png", "--out", out, "--overwrite") == 0
    assert len(out.read_text().splitlines()) == 5


def test_what_was_predicted_before_a_failure_is_in_the_file(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(0, 32, 32).save(tmp_path / "a.png")
    photo(1, 32, 32).save(tmp_path / "b.png")
    seen = iter([predict.as_rgb, None])
    monkeypatch.setattr(predict, "as_rgb", lambda data: next(seen)(data))  # type: ignore[misc]
    with pytest.raises(TypeError):
        predicted(run_dir, tmp_path / "a.png", tmp_path / "b.png", "--out", tmp_path / "p.json", "--batch-size", 1)
    assert [Path(record["image"]).name for record in json.loads((tmp_path / "p.json").read_text())] == ["a.png"]


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--top", "-1"], 2, "--top: -1, expected at least 1"),
        (["--batch-size", "many"], 2, "--batch-size: 'many', expected a whole number"),
        (["--device", "tpu"], 2, "--device is 'tpu'"),
        (["--out", "p.txt"], 2, "a file name that ends in .csv, .json or .jsonl"),
        (["--preset", "none"], 1, "preset 'none' is unknown"),
        (["--clas", "x"], 2, "unrecognized arguments"),
    ],
)
def test_wrong_values_are_one_line(
    run_dir: Path, tmp_path: Path, more: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(0, 32, 32).save(tmp_path / "a.png")
    try:
        found = predict.main([str(tmp_path / "a.png"), "--checkpoint", str(run_dir), "--device", "cpu", *more])
    except SystemExit as ended:
        found = int(ended.code or 0)
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert found == status
    assert len(errors) == 1
    assert errors[0].startswith("predict: error: ")
    assert message in errors[0]


def test_a_folder_that_is_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(0, 32, 32).save(tmp_path / "a.png")
    assert predicted(tmp_path, tmp_path / "a.png") == 1
    assert "a folder without checkpoints/best.pt" in capsys.readouterr().err


def test_patterns_and_shard_sets_are_predicted_and_lines_are_json(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test_set = small_images(tmp_path / "set", (2, 2, 1, 1))
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(bytes(test_set.encoded(number)))
    assert predicted(run_dir, test_set.path, "--top", 4, "--jsonl") == 0
    of_set = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(of_set) == len(test_set)
    assert all(record["image"].startswith(str(test_set.path)) for record in of_set)
    assert predicted(run_dir, tmp_path / "[0-2].png", "--top", 4, "--out", tmp_path / "new.jsonl") == 0
    of_files = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert [Path(record["image"]).name for record in of_files] == ["0.png", "1.png", "2.png"]
    assert [record["classes"] for record in of_files] == [record["classes"] for record in of_set[:3]]
    monkeypatch.chdir(tmp_path)
    assert predicted(run_dir, "*.png", "--jsonl") == 0
    with pytest.raises(SystemExit):
        predicted(run_dir, "0.png", "--out", "x.txt")
    assert predicted(run_dir, "*.tiff") == 1
