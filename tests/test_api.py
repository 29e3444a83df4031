"""A new user's walk on small generated photographs, from the command line and from Python, with the same numbers."""

import csv
import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, features

import longtail
from longtail.cli import main
from tests.helpers.pictures import photo
from tests.helpers.runs import ROOT
from tools.predict import evaluation_picture

COUNTS = {"Gebäude": 12, "house cat, grey": 6, "otter": 3}
SMALL = ["--model.name=resnet32", "--model.width=4", "--batch_size=8", "--device=cpu", "--trackers=none"]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


# The pictures of a phone, where this Pillow writes them.
OF_A_PHONE = ".avif" if features.check("avif") else ".jpg"


def write_photographs(folder: Path, suffix: str = ".jpg") -> None:
    """`folder`/{train,test}/CLASS/…, 40 × 48 pixels; every class has its own tint, the otters are a phone's."""
    for split, counts in (("train", COUNTS), ("test", dict.fromkeys(COUNTS, 3))):
        for label, (name, count) in enumerate(counts.items()):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = photo(1000 * label + 100 * (split == "test") + number, 48, 40) // 2
                pixels[..., label] += 90
                ending = OF_A_PHONE if name == "otter" else suffix
                Image.fromarray(pixels).save(folder / split / name / f"{number}{ending}")


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the command line has built, trained, evaluated and predicted."""
    folder = tmp_path_factory.mktemp("walk")
    write_photographs(folder / "photos")
    # As most archives are: one folder around everything.
    shutil.make_archive(str(folder / "photos"), "zip", root_dir=folder, base_dir="photos")
    preset = "base: cifar\nname: mine\nimage_size: 32\ntrain:\n  geometry: {RandomResizedCrop: {size: 32}}\n"
    (folder / "mine.yaml").write_text(preset)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for split in ("train", "test"):
            build = ["build", "imagefolder", "--images", "photos.zip", "--split-dir", split, "--out", f"data/{split}"]
            assert main(build) == 0
        data = ["--data.train=data/train", "--data.test=data/test", "--data.preset=mine.yaml", "--data.executor=dali"]
        method = ["--method.name=cmo", "--method.loss=bs", "--method.plain-first=0", "--method.plain-last=0"]
        assert main(["train", *data, *SMALL, *method, "--epochs=3", "--run-dir=runs/cli"]) == 0
        evaluate = [
            "--checkpoint",
            "runs/cli/checkpoints/best.pt",
            "--data",
            "data/test",
            "--train-counts",
            "data/train",
        ]
        assert main(["evaluate", *evaluate, "--device", "cpu", "--out", "evaluation"]) == 0
        predict = ["--checkpoint", "runs/cli/checkpoints/best.pt", "photos/test", "--device", "cpu"]
        assert main(["predict", *predict, "--out", "predictions.csv"]) == 0
    return folder


def test_inspect_shows_names_and_the_tail(walk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(walk / "data/train")]) == 0
    out = capsys.readouterr().out
    assert "Gebäude 12" in out and "otter 3" in out


def test_python_gives_the_numbers_of_the_command_line(walk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(walk)
    found = longtail.evaluate("runs/cli", "data/test", device="cpu")
    result = json.loads(Path("runs/cli/result.json").read_text())
    assert found.numbers["all"] == pytest.approx(result["test"]["best"]["all"], abs=1e-3)
    (scores,) = Path("evaluation").rglob("scores.json")
    assert json.loads(scores.read_text())["test"]["all"] == pytest.approx(found.numbers["all"], abs=1e-3)
    assert found.confusion.sum() == 9 and f"all {found.numbers['all']:.1f}" in repr(found)
    classifier = longtail.Classifier.load("runs/cli", device="cpu")
    assert classifier.class_names == sorted(COUNTS) and "Gebäude" in repr(classifier)
    with Path("predictions.csv").open(encoding="utf-8") as file:
        expected = {row["image"]: row for row in csv.DictReader(file) if row["rank"] == "1"}
    predictions = classifier.predict("photos/test")
    assert len(predictions) == len(expected) == 9
    for one in predictions:
        row = expected[str(one.image)]
        assert one.name == row["name"] and one.probability == pytest.approx(float(row["probability"]), abs=1e-4)


def test_what_is_exported_gives_the_answers_of_the_classifier(walk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By onnxruntime from a graph that normalises itself, and by timm from the exported folder."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
    monkeypatch.chdir(walk)
    command = ["export", "runs/cli", "--out", "exported", "--formats", "onnx", "--inside", "normalise"]
    assert main(command) == 0
    session = onnxruntime.InferenceSession("exported/model.onnx", providers=["CPUExecutionProvider"])
    importlib.import_module("train.exported.network")  # timm has no name for a CIFAR ResNet-32
    network = timm.create_model("local-dir:exported", pretrained=True).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    classifier = longtail.Classifier.load("runs/cli", device="cpu")
    paths = sorted(Path("photos/test/Gebäude").iterdir())
    expected = classifier.probabilities(paths)
    pixels = np.stack([evaluation_picture(path, classifier._trained) for path in paths])
    (by_onnx,) = session.run(None, {"images": pixels})
    with torch.inference_mode():
        by_timm = network((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    for logits in (torch.from_numpy(by_onnx), by_timm):
        np.testing.assert_allclose(logits.softmax(dim=1).numpy(), expected, atol=1e-4)
        assert (logits.argmax(dim=1).numpy() == expected.argmax(axis=1)).all()


def test_paths_pictures_and_arrays_are_one(walk: Path) -> None:
    classifier = longtail.Classifier.load(walk / "runs/cli/checkpoints/best.pt", device="cpu")
    paths = sorted((walk / "photos/test/otter").iterdir())
    pictures = [Image.open(path) for path in paths]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    first = classifier.predict(paths)
    assert first[0].image == paths[0] and sum(classifier.probabilities(paths)[0]) == pytest.approx(1, abs=1e-5)
    for other in (classifier.predict(pictures), classifier.predict(arrays), classifier.predict(str(paths[0].parent))):
        assert [p.probabilities for p in other] == [p.probabilities for p in first]
    with pytest.raises(ValueError, match="expected uint8"):
        classifier.predict(arrays.astype(np.float32))


def test_the_preset_of_ones_own_is_in_the_checkpoint(walk: Path) -> None:
    (walk / "mine.yaml").rename(walk / "gone.yaml")
    try:
        assert longtail.Classifier.load(walk / "runs/cli", device="cpu")._trained.preset.name == "mine"
    finally:
        (walk / "gone.yaml").rename(walk / "mine.yaml")


def test_a_dry_run_says_what_it_takes_and_leaves_nothing(
    walk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(walk)
    data = ["--data.train=data/train", "--data.test=data/test", "--data.preset=cifar", "--data.image-size=24"]
    assert main(["train", *data, *SMALL, "--method.name=vanilla", "--run-dir=runs/dry", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "600 of 8 images: 200 epochs of 3" in out and "24 pixels" in out and "GB" in out
    assert not Path("runs/dry").exists()


def test_options_are_checked_without_a_command_line(walk: Path, tmp_path: Path) -> None:
    data = {"train": walk / "data/train", "test": walk / "data/test"}
    options = longtail.Options.of(data=data, method={"loss": "bs"}, epochs=4)
    assert (options.run.epochs, options.method.loss, options.model.name) == (4, "bs", "resnet50")  # 224 pixels
    assert longtail.Options.of(data={**data, "preset": "cifar"}).model.name == "resnet32"
    assert longtail.Options.of("cifar100-lt/bs-cmo", epochs=5).run.epochs == 5
    for wrong, message in (
        ({"epoch": 4}, "epoch"),
        ({"batch_size": "many"}, "batch_size"),
        ({"data": {**data, "preset": "imagnet"}}, "imagenet"),
        ({"data": {**data, "std": [0.1, 0.1, 0.0]}}, "std above 0"),
        ({"method": {"name": "nowhere:Focal"}}, "nowhere"),
    ):
        with pytest.raises(ValueError, match=message):
            longtail.Options.of(**{"data": data, **wrong})


def test_help_shows_the_interface() -> None:
    import pydoc

    assert "Classifier.load" in pydoc.render_doc(longtail, renderer=pydoc.plaintext)
    assert "Raises" in pydoc.render_doc(longtail.train, renderer=pydoc.plaintext)
    for name in longtail.__all__:
        assert name == "__version__" or getattr(longtail, name).__doc__, name
        assert name.startswith("_") or name in PAGE, name


@pytest.fixture
def place_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what docs/api.md needs: photographs, the method of the other page, the preset."""
    write_photographs(tmp_path / "photos", ".png")
    method = re.findall(r"```python\n(.*?)```", (ROOT / "docs/adding-a-method.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "my_focal.py").write_text(method[0], encoding="utf-8")
    (tmp_path / "birds.yaml").write_text(re.findall(r"```yaml\n(.*?)```", PAGE, re.S)[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_and_the_notebook_run(place_of_the_page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    notebook = json.loads((ROOT / "docs" / "first_steps.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells == [block.rstrip("\n") for block in blocks]
    scope: dict[str, object] = {}
    for cell in cells:
        exec(compile(cell, "docs/first_steps.ipynb", "exec"), scope)
    out = capsys.readouterr().out
    assert "FinishedRun('runs/first'" in out and "21 images of 3 classes" in out and "birds resnet50" in out
