"""ImageNet-LT: the published lists over ILSVRC 2012, unpacked or in the original archives, which are read in place."""

from __future__ import annotations

import argparse
import posixpath
from collections.abc import Callable
from pathlib import Path

from tools.sources.archives import ArchivePath, Container, Folder, sniff
from tools.sources.list_files import Listing, class_names_of_folders
from tools.sources.listed_images import Expected, ListedImages
from tools.sources.stored import images_location
from tools.sources.tars import Tar

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
# The *validation list* uses ILSVRC's training images; the test list uses ILSVRC's validation images.
EXPECTED = Expected(1000, {"train": 115_846, "val": 20_000, "test": 50_000})


class ImageNetLT(ListedImages):
    """The subcommand `imagenet-lt`."""

    def __init__(self) -> None:
        super().__init__("imagenet-lt", "ImageNet-LT from the ILSVRC 2012 archives or folder, with its lists", EXPECTED)

    def add_images_argument(self, parser: argparse.ArgumentParser) -> None:
        help = f"unpacked ILSVRC folder with train/ and val/, or {TRAIN_TAR} and {VAL_TAR} as downloaded"
        parser.add_argument("--images", type=images_location, nargs="+", required=True, metavar="PATH", help=help)

    def containers(self, namespace: argparse.Namespace) -> Callable[[Listing], Container]:
        by_side: dict[str, Container] = {}
        for path in namespace.images:
            by_side |= _sides(path)

        def container_for(listing: Listing) -> Container:
            side = _side(listing)
            if side not in by_side:
                archive = TRAIN_TAR if side == "train" else VAL_TAR
                given = ", ".join(map(str, namespace.images))
                raise FileNotFoundError(
                    f"the list names images of {side}/: neither that folder nor {archive} is in --images {given}"
                )
            return by_side[side]

        return container_for

    def class_names(self, listing: Listing) -> list[str]:
        names = class_names_of_folders(listing.names, listing.labels, listing.num_classes)
        if len(set(listing.labels)) == listing.num_classes and names != sorted(names):
            raise ValueError(
                "the labels are not the rank of the WordNet ids (the folders in the paths) in sorted order, as in the "
                "published lists; is this a different list?"
            )
        return names


def _side(listing: Listing) -> str:
    sides = {name.partition("/")[0] for name in listing.names}
    if len(sides) != 1 or not sides <= {"train", "val"}:
        shown = ", ".join(sorted(sides)[:3])
        raise ValueError(f"the list's paths begin with {shown}; ImageNet-LT's all begin with train/, or all with val/")
    return sides.pop()


def _sides(path: ArchivePath) -> dict[str, Container]:
    """The containers of training and validation images that `path` provides."""
    kind = sniff(path)
    if kind == "folder":
        assert isinstance(path, Path)
        return _sides_of_folder(path)
    if kind != "tar":
        raise ValueError(f"{path}: a {kind} file; ImageNet-LT is read from the unpacked folder or the original tars")
    first = next((name for name, member in Tar(path).members() if member), "nothing")
    if first.endswith(".tar"):
        return {"train": Tar(path, key=_below_train, nested=True)}
    if "/" not in first and first.startswith("ILSVRC2012_val_"):
        return {"val": Tar(path, key=posixpath.basename)}
    raise ValueError(
        f"{path}: its first file is {first}, expected the class tars of {TRAIN_TAR} or the images of {VAL_TAR}"
    )


def _sides_of_folder(path: Path) -> dict[str, Container]:
    sides: dict[str, Container] = {}
    for side, archive in (("train", TRAIN_TAR), ("val", VAL_TAR)):
        if (path / side).is_dir():
            flat = side == "val" and not any(entry.is_dir() for entry in (path / side).iterdir())
            sides[side] = Folder(path, key=_flat_val) if flat else Folder(path)
        elif (path / archive).is_file():
            sides |= _sides(path / archive)
    return sides


def _below_train(name: str) -> str:
    return name.removeprefix("train/")


def _flat_val(name: str) -> str:
    """The lists put validation images into class folders; the archive, and a plain unpacked copy, do not."""
    return f"val/{posixpath.basename(name)}"
