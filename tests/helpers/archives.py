"""Small data sets in the original layouts, under the names of the downloads, for tests and for trying the commands.

    ILSVRC2012_img_train.tar (a tar of tars), ILSVRC2012_img_val.tar (flat), ImageNet_LT_{train,val,test}.txt
    train_val2018.tar.gz, train2018.json, val2018.json, iNaturalist18_{train,val}.txt
    cifar-10-python.tar.gz, cifar-100-python.tar.gz
    class folders as a tree, .zip, .tar or .tar.gz

Every image is different and its colour tells its class, so that a model can learn them.
"""

import colorsys
import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

WORDNET_IDS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331")
DEFAULT_COUNTS = (12, 6, 3, 2)


def image_bytes(label: int, number: int, size: tuple[int, int] = (48, 40), kind: str = "JPEG") -> bytes:
    """An encoded image of `size` (width, height): the colour of the class with noise of its own."""
    rng = np.random.default_rng([label, number])
    colour = np.array(colorsys.hsv_to_rgb(label * 0.382 % 1, 0.8, 0.8)) * 255
    pixels = colour + rng.normal(0, 25, (size[1], size[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def tar_bytes(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    """A GNU tar of `files`, as the originals are; mode "w:gz" compresses it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """A zip of `files`, deflated."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def write_tree(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The files unpacked into `folder`."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def class_folders(counts: Sequence[int] = DEFAULT_COUNTS, prefix: str = "", kind: str = "JPEG") -> dict[str, bytes]:
    """Images by name `PREFIX/class_K/NNNN.jpg`."""
    suffix = {"JPEG": "jpg", "PNG": "png"}[kind]
    start = f"{prefix}/" if prefix else ""
    return {
        f"{start}class_{label}/{number:04d}.{suffix}": image_bytes(label, number, kind=kind)
        for label, count in enumerate(counts)
        for number in range(count)
    }


def imagenet_files(counts: Sequence[int] = DEFAULT_COUNTS) -> dict[str, dict[str, bytes]]:
    """Images of the three lists of an ImageNet-LT by the paths that the lists use; val and test have two a class."""
    files: dict[str, dict[str, bytes]] = {"train": {}, "val": {}, "test": {}}
    for label, count in enumerate(counts):
        wnid = WORDNET_IDS[label]
        for number in range(count + 2):
            split = "train" if number < count else "val"
            files[split][f"train/{wnid}/{wnid}_{number * 7 + 1}.JPEG"] = image_bytes(label, number)
        for number in range(2):
            # Neighbours in the flat archive belong to different classes, as in the original.
            position = number * len(counts) + label + 1
            files["test"][f"val/{wnid}/ILSVRC2012_val_{position:08d}.JPEG"] = image_bytes(label, 1000 + number)
    return files


def write_imagenet(folder: Path, counts: Sequence[int] = DEFAULT_COUNTS) -> Path:
    """The two ILSVRC tars with the three lists, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = imagenet_files(counts)
    in_training = files["train"] | files["val"]
    class_tars = {}
    for wnid in WORDNET_IDS[: len(counts)]:
        of_class = {Path(name).name: data for name, data in in_training.items() if f"/{wnid}/" in name}
        class_tars[f"{wnid}.tar"] = tar_bytes(of_class)
    flat = {Path(name).name: data for name, data in files["test"].items()}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(class_tars))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(dict(sorted(flat.items()))))
    for split, of_split in files.items():
        lines = [f"{name} {WORDNET_IDS.index(name.split('/')[1])}" for name in of_split]
        (folder / f"ImageNet_LT_{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


def unpacked_imagenet(folder: Path, counts: Sequence[int] = DEFAULT_COUNTS, flat_val: bool = False) -> Path:
    """The same images as the usual unpacked ILSVRC root; `flat_val` as the validation tar unpacks by itself."""
    for of_split in imagenet_files(counts).values():
        for name, data in of_split.items():
            flat = flat_val and name.startswith("val/")
            write_tree(folder, {f"val/{Path(name).name}" if flat else name: data})
    return folder


def inat_files(counts: Sequence[int] = DEFAULT_COUNTS) -> dict[str, dict[str, bytes]]:
    """Images of an iNaturalist 2018 by their paths, train and val (one a class); the files are named by a hash."""
    files: dict[str, dict[str, bytes]] = {"train": {}, "val": {}}
    for label, count in enumerate(counts):
        for number in range(count + 1):
            digest = hashlib.md5(f"{label}/{number}".encode()).hexdigest()
            name = f"train_val2018/Plantae/{label}/{digest}.jpg"
            files["train" if number < count else "val"][name] = image_bytes(label, number)
    return files


def write_inat(folder: Path, counts: Sequence[int] = DEFAULT_COUNTS) -> Path:
    """The tar.gz of both splits with the competition's JSON files, and the same as text lists, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = inat_files(counts)
    (folder / "train_val2018.tar.gz").write_bytes(tar_bytes(files["train"] | files["val"], "w:gz"))
    categories = [{"id": k, "name": f"Species {k}", "supercategory": "Plantae"} for k in range(len(counts))]
    for split, of_split in files.items():
        records = [{"id": 100 + i, "file_name": name, "width": 48, "height": 40} for i, name in enumerate(of_split)]
        labels = [int(name.split("/")[2]) for name in of_split]
        annotations = [{"id": 100 + i, "image_id": 100 + i, "category_id": label} for i, label in enumerate(labels)]
        document = {"images": records, "annotations": annotations, "categories": categories}
        (folder / f"{split}2018.json").write_text(json.dumps(document))
        # As one of the circulating lists: the last line lacks its end.
        lines = [f"{name} {label}" for name, label in zip(of_split, labels, strict=True)]
        (folder / f"iNaturalist18_{split}.txt").write_text("\n".join(lines))
    return folder


def cifar_pixels(num_classes: int, count: int, offset: int = 0) -> tuple[np.ndarray, list[int]]:
    """Pixels uint8 (count, 32, 32, 3) and labels in a shuffled order."""
    rng = np.random.default_rng([num_classes, offset])
    labels = rng.permutation(np.arange(count) % num_classes).tolist()
    images = [image_bytes(label, offset + i, (32, 32), "PNG") for i, label in enumerate(labels)]
    return np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in images]), labels


def write_cifar(folder: Path, num_classes: int = 10, train: int = 200, test: int = 20) -> Path:
    """`cifar-10-python.tar.gz` or `cifar-100-python.tar.gz` with so many images, in `folder`; returns its path."""
    if num_classes == 10:
        root, labels_key, names_key, meta = "cifar-10-batches-py", b"labels", b"label_names", "batches.meta"
        parts = {f"data_batch_{i + 1}": (train // 5, i * 1000) for i in range(5)} | {"test_batch": (test, 9000)}
    else:
        root, labels_key, names_key, meta = "cifar-100-python", b"fine_labels", b"fine_label_names", "meta"
        parts = {"train": (train, 0), "test": (test, 9000)}
    contents = {meta: {names_key: [f"name_{k}".encode() for k in range(num_classes)]}}
    for name, (count, offset) in parts.items():
        pixels, labels = cifar_pixels(num_classes, count, offset)
        contents[name] = {b"data": pixels.transpose(0, 3, 1, 2).reshape(count, 3072), labels_key: labels}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cifar-{num_classes}-python.tar.gz"
    files = {f"{root}/readme.html": b"<html>"} | {f"{root}/{k}": pickle.dumps(v) for k, v in contents.items()}
    path.write_bytes(tar_bytes(files, "w:gz"))
    return path
