"""Any tree of class folders, unpacked or inside a .zip or .tar: the way to bring one's own data."""

from __future__ import annotations

import argparse
import logging
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.class_counts import Int64Array, cmo_subset, long_tailed_counts, samples_per_class
from shards.source import Source
from tools.sources.archives import Container, file_stamp
from tools.sources.file_source import FileSource, check_no_class_is_empty
from tools.sources.lists import is_one_line
from tools.sources.spool import container_of, scratch_folder

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class ClassFolders:
    """A tree of class folders: class names sorted, file names sorted by class and name, labels int64 (N,)."""

    class_names: list[str]
    names: list[str]
    labels: Int64Array


class ImageFolder:
    """The subcommand `imagefolder`."""

    help = "class folders of images, as a folder, .zip, .tar or .tar.gz"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--images", type=Path, required=True, help="the folder or archive with one folder a class")
        add("--split-dir", default="", help="the folder inside it that holds the class folders, such as train")
        add(
            "--split",
            choices=("train", "val", "test"),
            help="which split this is (default: told by --split-dir, or train)",
        )
        add(
            "--imb-factor",
            type=float,
            help="make a long-tailed subset: smallest / largest class, such as 0.01; larger classes stay larger",
        )
        add(
            "--holdout",
            type=float,
            default=0.0,
            metavar="SHARE",
            help="share of every class for a validation set, OUT-holdout; taken out before --imb-factor applies",
        )

    def from_args(self, namespace: argparse.Namespace) -> dict[str, Source]:
        if not 0 <= namespace.holdout < 1:
            raise ValueError(f"--holdout is {namespace.holdout}, expected a share from 0 up to 1, such as 0.1")
        container = container_of(namespace.images, scratch_folder(namespace.out))
        split_dir = namespace.split_dir.strip("/")
        split = namespace.split or _split_of(split_dir)
        tree = list_class_folders(container, split_dir)
        if not namespace.allow_partial:
            check_no_class_is_empty(tree.labels.tolist(), tree.class_names, str(namespace.images))
        kept, held_out = hold_out(tree.labels, namespace.holdout, namespace.seed)
        if namespace.imb_factor is not None:
            kept = kept[long_tail(tree.labels[kept], tree.class_names, namespace.imb_factor, namespace.seed)]
        options = {
            "split_dir": split_dir,
            "imb_factor": namespace.imb_factor,
            "holdout": namespace.holdout,
            "subset_seed": namespace.seed,
        }

        def source(indices: Int64Array, name: str, split: str) -> Source:
            return FileSource(
                name=name,
                split=split,
                class_names=tree.class_names,
                names=[tree.names[i] for i in indices],
                labels=tree.labels[indices].tolist(),
                container=container,
                options={**options, "split": split},
                inputs=file_stamp(namespace.images),
            )

        name = re.sub(r"\.(zip|tar|tar\.gz|tgz)$", "", namespace.images.resolve().name)
        sources = {"": source(kept, name, split)}
        if namespace.holdout:
            sources["-holdout"] = source(held_out, f"{name}-holdout", "val")
        return sources


def list_class_folders(container: Container, split_dir: str) -> ClassFolders:
    """The images below SPLIT_DIR/CLASS/ at any depth. Files of other kinds are left out and counted."""
    prefix = f"{split_dir}/" if split_dir else ""
    classes: set[str] = set()
    class_of: dict[str, str] = {}  # a tar may hold a name twice, the later one counts
    outside = others = 0
    for name, member in container.members():
        class_name, _, inside = name.removeprefix(prefix).partition("/")
        if not name.startswith(prefix) or _is_clutter(name) or not class_name:
            continue
        if member is None:
            classes.add(class_name)
        elif not inside:
            outside += name.lower().endswith(IMAGE_SUFFIXES)
        elif not inside.lower().endswith(IMAGE_SUFFIXES):
            others += 1
        elif not is_one_line(name):
            raise ValueError(f"{container.path}: the name {name!r} cannot be listed as a line of UTF-8 text; rename it")
        else:
            classes.add(class_name)
            class_of[name] = class_name
    if not class_of:
        tops = sorted({name.split("/")[0] for name, _ in container.members() if not _is_clutter(name)})
        raise ValueError(
            f"{container.path}: no {', '.join(IMAGE_SUFFIXES)} file inside a class folder of {split_dir or 'the top'}; "
            f"found there: {', '.join(tops[:10]) or 'nothing'}; give the folder of the classes with --split-dir"
        )
    if outside or others:
        _log.warning("%s: left out %d images outside class folders and %d other files", container.path, outside, others)
    class_names = sorted(classes)
    if not split_dir and set(class_names) <= _SPLIT_FOLDERS:
        raise ValueError(
            f"{container.path}: the folders {', '.join(class_names)} are splits, not classes; give one with --split-dir"
        )
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    names = sorted(class_of, key=lambda name: (class_of[name], name))
    labels = np.array([label_of[class_of[name]] for name in names], dtype=np.int64)
    return ClassFolders(class_names, names, labels)


def _is_clutter(name: str) -> bool:
    return name.startswith("__MACOSX/") or any(part.startswith(".") for part in name.split("/"))


def _split_of(split_dir: str) -> str:
    last = posixpath.basename(split_dir).lower()
    if last in ("val", "valid", "validation"):
        return "val"
    return "test" if last == "test" else "train"


def hold_out(labels: Int64Array, share: float, seed: int) -> tuple[Int64Array, Int64Array]:
    """Kept and held-out sample indices, ascending, by class: round(share · n_k) are held out.

    A class of two or more has at least one on each side, a class of one keeps it.
    """
    if share == 0:
        return np.arange(labels.size), np.empty(0, dtype=np.int64)
    counts = samples_per_class(labels, int(labels.max()) + 1)
    most = np.maximum(counts - 1, 0)
    wanted = np.clip(np.rint(counts * share).astype(np.int64), np.minimum(1, most), most)
    held_out = np.sort(cmo_subset(labels, wanted, seed))
    return np.delete(np.arange(labels.size), held_out), held_out


def long_tail(labels: Int64Array, class_names: list[str], imb_factor: float, seed: int) -> Int64Array:
    """Indices of a long-tailed subset, ascending; see `long_tailed_counts`, with classes ranked by size, then name."""
    counts = samples_per_class(labels, len(class_names))
    by_size = np.argsort(-counts, kind="stable")
    shares = np.empty_like(counts)
    shares[by_size] = long_tailed_counts(int(counts.max()), counts.size, imb_factor)
    short = np.flatnonzero(counts < shares)
    if short.size:
        first = int(short[0])
        raise ValueError(
            f"--imb-factor {imb_factor}: {short.size} classes have fewer images than their share, the first is "
            f"{class_names[first]!r} with {counts[first]} of {shares[first]}; "
            "this data set is already steeper than that: use a smaller --imb-factor or leave it out"
        )
    return np.sort(cmo_subset(labels, shares, seed))
