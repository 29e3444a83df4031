"""Data sets defined by a list: images in one place, names and labels in another. Places-LT and your own lists."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.commandline import home_path, whole_number
from shards.source import Source
from tools.sources.archives import Container, file_stamp
from tools.sources.file_source import FileSource, check_no_class_is_empty
from tools.sources.list_files import Listing, class_names_of_folders, read_listing
from tools.sources.spool import container_of
from tools.sources.stored import images_location

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Expected:
    """The published sizes of a data set. A split that is not listed is not checked."""

    num_classes: int
    samples: Mapping[str, int]

    def check(self, name: str, split: str, found: int) -> None:
        """Raises ValueError, with both numbers, if the list does not have the published number of images."""
        expected = self.samples.get(split, found)
        if found != expected:
            raise ValueError(
                f"{name} {split}: the list has {found} images, the published one {expected}; is it complete, "
                "and of this split (--split)? Pass --allow-partial to build it anyway"
            )


PLACES_LT = Expected(365, {"train": 62_500, "val": 7_300, "test": 36_500})


class ListedImages:
    """A subcommand that reads lists: the generic `list`, and every known data set defined by one."""

    def __init__(self, name: str, help: str, expected: Expected | None = None) -> None:
        self.name, self.help, self.expected = name, help, expected

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        self.add_images_argument(parser)
        add(
            "--list",
            "--annotations",
            dest="lists",
            type=home_path,
            nargs="+",
            required=True,
            metavar="LIST",
            help="`path label` lines, or the JSON of iNaturalist or NCL; several lists build OUT/train, OUT/val and "
            "OUT/test from one archive",
        )
        add("--split", choices=SPLITS, help="the split of a single list (default: derived from its file name)")
        add("--strip-prefix", default="", help="beginning of the list's paths that --images replaces")
        if self.expected is None:
            add("--num-classes", type=whole_number(1), help="number of classes (default: the largest label + 1)")
            add(
                "--first-label",
                type=whole_number(0),
                default=0,
                help="number of the first class in the list (default: 0)",
            )

    def add_images_argument(self, parser: argparse.ArgumentParser) -> None:
        """Adds --images; its value is passed to `containers`."""
        help = "folder or archive (tar, also .gz, .bz2, .xz or .zst; zip), or its URL; listed paths are relative to it"
        parser.add_argument("--images", type=images_location, required=True, help=help)

    def from_args(self, namespace: argparse.Namespace) -> dict[str, Source]:
        num_classes = self.expected.num_classes if self.expected else namespace.num_classes
        first_label = 0 if self.expected else namespace.first_label
        container_for = self.containers(namespace)
        sources: dict[str, Source] = {}
        for path, split in zip(namespace.lists, splits_of(namespace.lists, namespace.split), strict=True):
            listing = read_listing(path, num_classes, namespace.strip_prefix, first_label)
            if self.expected and not namespace.allow_partial:
                self.expected.check(self.name, split, len(listing.names))
            class_names = self.class_names(listing)
            if not namespace.allow_partial:
                check_no_class_is_empty(listing.labels, class_names, str(path))
            container = container_for(listing)
            sources["" if len(namespace.lists) == 1 else f"/{split}"] = FileSource(
                name=self.name,
                split=split,
                class_names=class_names,
                names=listing.names,
                labels=listing.labels,
                container=container,
                options={"list": path.name},
                inputs=file_stamp(container.path) | file_stamp(path),
            )
        return sources

    def containers(self, namespace: argparse.Namespace) -> Callable[[Listing], Container]:
        """Opens --images and returns a function that gives the container of a list's images."""
        container = container_of(namespace.images, namespace.out)
        return lambda listing: container

    def class_names(self, listing: Listing) -> list[str]:
        """The class names of a list, in label order."""
        return listing.class_names or class_names_of_folders(listing.names, listing.labels, listing.num_classes)


def splits_of(lists: list[Path], given: str | None) -> list[str]:
    """The split of each list: the given one, or the single word among train, val and test in its file name."""
    if given is not None and len(lists) > 1:
        raise ValueError(f"--split {given} with {len(lists)} lists: omit it, the file names determine the splits")
    splits = [given or _split_in_name(path) for path in lists]
    if len(set(splits)) < len(splits):
        raise ValueError(f"the lists are for the splits {', '.join(splits)}: give one list per split")
    return splits


def _split_in_name(path: Path) -> str:
    words = set(re.findall("|".join(SPLITS), path.stem.lower()))
    if len(words) != 1:
        raise ValueError(f"{path.name}: the file name does not show whether this is train, val or test; pass --split")
    return words.pop()
