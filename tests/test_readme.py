"""Every command of the README runs, in its order, on small archives of the names it uses.

What is changed about them is `SHORTENED`: data sets are accepted although they are small, runs end after two steps, and
where a generated set lacks most of a data set's classes, training reads another.
"""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.archives import class_folders, tar_bytes, write_imagenet, write_inat, zip_bytes
from tests.helpers.processes import start

ROOT = Path(__file__).parents[1]
TWO_STEPS = "--epochs 1 --max_steps 2 --batch_size 4 --trackers []"
ON_OWN_IMAGES = "--data.train data/mine/train --data.test data/mine/test --model.name resnet18"
SHORTENED = {
    "build imagenet-lt": "--allow-partial",
    "build inat18": "--allow-partial",
    "--archive cifar-100-python.tar.gz --split test": "--allow-partial",
    "--recipe imagenet-lt/bs-cmo": f"{TWO_STEPS} {ON_OWN_IMAGES}",
    "--recipe inat18/bs-cmo": f"{TWO_STEPS} {ON_OWN_IMAGES}",
    "--recipe cifar100-lt/bs-cmo": TWO_STEPS,
    "--run_dir runs/mine": f"{TWO_STEPS} --model.name resnet18",
}


def commands() -> list[str]:
    """The shell commands of the README's bash blocks, continuation lines joined."""
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```", (ROOT / "README.md").read_text(), re.S | re.M)
    lines = "".join(block for block in blocks if "#SBATCH" not in block).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def write_full_cifar100(folder: Path) -> None:
    """A training set of the real size, one colour per class, and a test set of one image per class."""
    files: dict[str, bytes] = {}
    for name, count in (("train", 50_000), ("test", 100)):
        labels = np.arange(count) % 100
        pixels = np.broadcast_to(labels[:, None], (count, 3072)).astype(np.uint8)
        files[name] = pickle.dumps({b"data": pixels, b"fine_labels": labels.tolist()})
    files["meta"] = pickle.dumps({b"fine_label_names": [f"name_{k}".encode() for k in range(100)]})
    named = {f"cifar-100-python/{name}": data for name, data in files.items()}
    (folder / "cifar-100-python.tar.gz").write_bytes(tar_bytes(named, "w:gz"))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty checkout's folder as after `make demo`, with the downloads of the README beside it."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("recipes", "accelerate_config.yaml"):
        (folder / name).symlink_to(ROOT / name)
    write_imagenet(folder)
    write_inat(folder)
    write_full_cifar100(folder)
    counts = class_folders(prefix="train", counts=(30, 12, 5)) | class_folders(prefix="test", counts=(2, 2, 2))
    (folder / "photos.zip").write_bytes(zip_bytes(counts))
    (folder / "photos" / "new").mkdir(parents=True)
    (folder / "photos" / "new" / "one.png").write_bytes(next(iter(class_folders(prefix="new", counts=(1,)).values())))
    for split in ("train", "test"):
        run(f"longtail build digits-lt --split {split} --out data/digits-lt/{split}", folder)
    for recipe in ("digits-lt/ce", "digits-lt/bs-cmo"):
        run(f"longtail train --recipe recipes/{recipe}.yaml {TWO_STEPS}", folder)
    # Own images first: the others train on them.
    for command in commands():
        if "mine" in command:
            run(shortened(command), folder)
    return folder


def shortened(command: str) -> str:
    """The command with what makes it run on small data in seconds."""
    return " ".join([command, *(extra for part, extra in SHORTENED.items() if part in command)])


def run(command: str, folder: Path) -> None:
    """Run it with this environment's Python, without a shell if it needs none."""
    if command.startswith("longtail ") and not set("*|>&;$") & set(command):
        log = folder / "log.txt"
        log.unlink(missing_ok=True)
        process = start(
            shlex.split(command)[1:], log, variables={"PYTHONPATH": str(ROOT)}, module="longtail", folder=folder
        )
        assert process.wait() == [0], f"{command}\n{process.output()[-3000:]}"
        return
    command = re.sub("^longtail", f"{sys.executable} -m longtail", command)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("longtail") and "mine" not in c])
def test_command(command: str, workplace: Path) -> None:
    run(shortened(command), workplace)


def test_own_images_were_built_and_trained_on(workplace: Path) -> None:
    assert (workplace / "runs" / "mine" / "result.json").is_file()
    assert (workplace / "data" / "mine" / "train-holdout" / "dataset.json").is_file()


def test_every_shortening_is_of_a_command() -> None:
    for part in SHORTENED:
        assert any(part in command for command in commands()), part


def test_the_first_screen_says_what_it_is_and_how_far() -> None:
    screen = (ROOT / "README.md").read_text().splitlines()[:26]
    text = " ".join(screen)
    assert screen[0] == "# longtail" and screen[2].startswith("Train image classifiers on long-tailed data")
    assert "does not fill the card yet" in text and "make demo" in text and "](docs/accuracy_by_class_size.png)" in text


def test_the_numbers_of_the_text_are_those_of_the_results() -> None:
    text = (ROOT / "README.md").read_text()
    for name in ("bs-30-epochs-h200", "bs-cmo-30-epochs-seed0", "ce-30-epochs-seed0", "ce-cmo-30-epochs-seed0"):
        result = json.loads((ROOT / "benchmarks" / "results" / f"cifar10-lt-{name}.json").read_text())
        assert f"{result['test']['last']['all']:.1f}" in text, name


@pytest.mark.parametrize("target", ["help", "setup", "demo", "test"])
def test_the_makefile_has_what_is_named(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text()
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_slurm_script_is_valid_shell() -> None:
    script = re.search(r"```bash\n(#SBATCH.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert script is not None
    subprocess.run(["bash", "-n"], input=script[1], text=True, check=True)


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
