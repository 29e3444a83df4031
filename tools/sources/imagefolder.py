"""Any tree of class folders, unpacked or inside a .zip or .tar: for your own data."""

from __future__ import annotations

import argparse
import posixpath
from pathlib import Path

import numpy as np

from shards.class_counts import Int64Array, samples_per_class
from shards.commandline import UsageError, finite_number
from shards.source import Source
from tools.sources.archives import ArchivePath, file_stamp
from tools.sources.class_folders import folder_in, list_class_folders
from tools.sources.file_source import FileSource, check_no_class_is_empty
from tools.sources.spool import archive_stem, container_of
from tools.sources.stored import images_location
from tools.sources.subsets import cmo_subset, long_tailed_counts


class ImageFolder:
    """The subcommand `imagefolder`."""

    help = "class folders of images, as a folder, .zip, .tar or compressed .tar"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add(
            "--images",
            type=images_location,
            required=True,
            help="folder or archive with one folder per class; also an archive's URL",
        )
        add(
            "--split-dir",
            default="",
            help="the folder inside it that holds the class folders, such as train (. is the top level)",
        )
        add(
            "--split",
            choices=("train", "val", "test"),
            help="name of the split (default: derived from --split-dir, or train)",
        )
        add(
            "--imb-factor",
            type=finite_number,
            help="build a long-tailed subset: smallest / largest class, such as 0.01; larger classes stay larger",
        )
        add(
            "--holdout",
            type=finite_number,
            default=0.0,
            metavar="SHARE",
            help="share of every class for a validation set, OUT-holdout; removed before --imb-factor applies",
        )

    def from_args(self, namespace: argparse.Namespace) -> dict[str, Source]:
        if not 0 <= namespace.holdout < 1:
            raise UsageError(f"--holdout is {namespace.holdout}, expected a share from 0 up to 1, such as 0.1")
        container = container_of(namespace.images, namespace.out)
        split_dir = folder_in(namespace.images, namespace.split_dir)
        split = namespace.split or _split_of(split_dir or "")
        _refuse_output_among_images(namespace.images, split_dir or "", namespace.out)
        tree = list_class_folders(container, split_dir, allow_one_class=namespace.allow_partial)
        if not namespace.allow_partial:
            check_no_class_is_empty(tree.labels.tolist(), tree.class_names, str(namespace.images))
        kept, held_out = hold_out(tree.labels, namespace.holdout, namespace.seed)
        if namespace.holdout and not len(held_out):
            raise UsageError(
                f"--holdout is {namespace.holdout}, which takes no image of any class: the largest has "
                f"{np.bincount(tree.labels).max()}; hold out a larger share, or build a validation set "
                "from other images"
            )
        if namespace.imb_factor is not None:
            kept = kept[long_tail(tree.labels[kept], tree.class_names, namespace.imb_factor, namespace.seed)]
        options = {
            "split_dir": tree.root,
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
                left_out=tree.left_out,
            )

        name = archive_stem(_absolute(namespace.images).name)
        sources = {"": source(kept, name, split)}
        if namespace.holdout:
            sources["-holdout"] = source(held_out, f"{name}-holdout", "val")
        return sources


def _absolute(images: ArchivePath) -> ArchivePath:
    return images.resolve() if isinstance(images, Path) else images


def _refuse_output_among_images(images: ArchivePath, split_dir: str, out: Path) -> None:
    """Refuse --out inside the images: the next run would treat the shards as a class."""
    if isinstance(images, Path) and images.is_dir() and out.resolve().is_relative_to((images / split_dir).resolve()):
        raise ValueError(f"--out {out} is among the images of {images / split_dir}; choose a folder outside it")


def _split_of(split_dir: str) -> str:
    last = posixpath.basename(split_dir).lower()
    if last in ("val", "valid", "validation"):
        return "val"
    return "test" if last == "test" else "train"


def hold_out(labels: Int64Array, share: float, seed: int) -> tuple[Int64Array, Int64Array]:
    """Kept and held-out sample indices, ascending, by class: round(share · n_k) are held out.

    A class with two or more images has at least one on each side; a class with one image keeps it.
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
            "this data set is already more imbalanced than that: use a smaller --imb-factor or omit it"
        )
    return np.sort(cmo_subset(labels, shares, seed))
