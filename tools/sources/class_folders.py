"""Decides which folders of a tree are classes, which files are their images, and what is left out."""

from __future__ import annotations

import logging
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath

import numpy as np

from shards.class_counts import Int64Array
from shards.format import printable_name
from shards.image_formats import IMAGE_SUFFIXES
from tools.sources.archives import ArchivePath, Container, leads_out

logger = logging.getLogger(__name__)

_SPLIT_FOLDERS = {"train", "training", "trainset", "val", "valid", "validation", "valset", "test", "testing", "testset"}
_NOT_A_CLASS = {"images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "data"}
# Clutter from file managers, NAS systems and macOS' zip; hidden files and folders count as well.
_CLUTTER = {
    "__macosx",
    "@eadir",  # Synology
    "@tmp",
    "#recycle",
    "#snapshot",
    "@recycle",  # QNAP
    "@recently-snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__pycache__",
}
_SHOWN = 8


@dataclass(frozen=True)
class ClassFolders:
    """A tree of class folders: class names sorted, file names sorted by class and name, labels int64 (N,).

    root: the folder that holds the class folders, "" for the top level.
    left_out: files that are not images of a class, by name, with the reason.
    """

    class_names: list[str]
    names: list[str]
    labels: Int64Array
    root: str
    left_out: dict[str, str]


@dataclass
class _Found:
    """The images by name, and the folders, of a container."""

    images: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)


def list_class_folders(container: Container, split_dir: str | None, allow_one_class: bool = False) -> ClassFolders:
    """The images below ROOT/CLASS/ at any depth.

    ROOT is `split_dir`, possibly inside a single top-level folder. If it is None, ROOT is the top level or the single
    folder that holds everything. Raises ValueError if the folders do not look like classes.
    """
    found = _read(container)
    root = _root(found, split_dir, container)
    prefix = f"{root}/" if root else ""
    class_of = {}
    for name in found.images:
        class_name, _, inside = name[len(prefix) :].partition("/")
        if not name.startswith(prefix):
            continue
        if inside:
            class_of[name] = class_name
        else:
            found.left_out[name] = "outside class folders"
    folders = {name[len(prefix) :].partition("/")[0] for name in found.folders if name.startswith(prefix)} - {""}
    folders |= set(class_of.values())
    if not class_of:
        raise ValueError(_nothing(found, root, container))
    if split_dir is None:
        _refuse_splits(class_of, folders, prefix, container)
    if len(folders) == 1 and not allow_one_class:
        _refuse_one_class(class_of, folders, prefix, container)
    tree = _tree(
        class_of, folders, root, {name: why for name, why in found.left_out.items() if name.startswith(prefix)}
    )
    _say(tree, container)
    return tree


def folder_in(images: ArchivePath, split_dir: str) -> str | None:
    """`split_dir` relative to `images`, normalised: "./train/" is "train", "." is ""; None if not given.

    Raises ValueError if it is outside `images`.
    """
    if not split_dir:
        return None
    if isinstance(images, Path) and images.is_dir() and split_dir.startswith("/"):
        split_dir = _below(images, split_dir)
    plain = posixpath.normpath(split_dir.replace("\\", "/").lstrip("/") or ".")
    if plain.startswith(".."):
        raise ValueError(f"--split-dir {split_dir} leaves --images {images}; give a folder inside it, such as train")
    return "" if plain == "." else plain


def _below(images: Path, split_dir: str) -> str:
    """The part below `images` of an absolute path, or the path itself if it does not exist."""
    if Path(split_dir).is_relative_to(images.absolute()):
        return str(Path(split_dir).relative_to(images.absolute()))
    if not Path(split_dir).exists():
        return split_dir
    try:
        return str(Path(split_dir).resolve().relative_to(images.resolve()))
    except ValueError:
        raise ValueError(f"--split-dir {split_dir} is not inside {images}; give that folder as --images") from None


def _read(container: Container) -> _Found:
    """Everything once. A duplicate name counts once: the later member is fetched."""
    found = _Found()
    for name, member in container.members():
        if member is not None and "/" in name:  # an archive does not have to list its folders
            found.folders.add(_folder_of(name))
        if _is_clutter(name):
            if member is not None and _has_image_suffix(name):
                found.left_out[name] = "clutter"
        elif member is None:
            found.folders.add(name)
        elif not _has_image_suffix(name):
            found.left_out[name] = "no image suffix"
        elif leads_out(name):
            raise ValueError(
                f"{container.path}: the member {printable_name(name)!r} leads out of the archive; unpack it "
                "and give the folder"
            )
        else:
            found.images.add(name)
    return found


def _folder_of(name: str) -> str:
    """The folder of a file, up to the first clutter folder."""
    return "/".join(takewhile(lambda part: not _is_clutter(part), name.split("/")[:-1]))


def _has_image_suffix(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _is_clutter(name: str) -> bool:
    return any((part.startswith(".") and part != "..") or part.lower() in _CLUTTER for part in name.split("/"))


def _root(found: _Found, split_dir: str | None, container: Container) -> str:
    top = _only_folder(found, "")
    if split_dir is None:
        # A single folder with images directly inside is a class, even if it is the only one.
        if not top or top.lower() in _SPLIT_FOLDERS or not all("/" in name[len(top) + 1 :] for name in found.images):
            return ""
        logger.warning(
            "%s: everything is in the folder %s, so the classes are the folders inside it", container.path, top
        )
        return top
    if split_dir and top and not any(name.startswith(f"{split_dir}/") for name in found.images):
        below = f"{top}/{split_dir}"
        if any(name.startswith(f"{below}/") for name in found.images):
            logger.warning("%s: %s is in the folder %s", container.path, split_dir, top)
            return below
    return split_dir


def _only_folder(found: _Found, prefix: str) -> str:
    """The one folder below `prefix` that holds all images, or ""."""
    tops = {name.partition("/")[0] for name in found.images}
    return tops.pop() if len(tops) == 1 and all("/" in name for name in found.images) else ""


def _nothing(found: _Found, root: str, container: Container) -> str:
    tops = sorted({name.partition("/")[0] for name in (*found.images, *found.folders, *found.left_out)} - {""})
    suffixes = Counter(PurePosixPath(name).suffix.lower() or "none" for name in found.left_out)
    others = f" (files left out, by suffix: {_counted(suffixes)})" if suffixes else ""
    return (
        f"{container.path}: no image file ({', '.join(sorted(IMAGE_SUFFIXES)[:6])}, …) inside a class folder of "
        f"{root or 'the top level'}; found there: {_shown(tops) or 'nothing'}{others}; give the folder of the "
        "class folders with --split-dir"
    )


def _refuse_splits(class_of: dict[str, str], folders: set[str], prefix: str, container: Container) -> None:
    """Folders such as train and test, if they hold no images directly or if there are no other folders."""
    splits = sorted(name for name in folders if name.lower() in _SPLIT_FOLDERS)
    holding = {class_of[name] for name in class_of if "/" not in name[len(prefix) + len(class_of[name]) + 1 :]}
    if splits and (set(splits) == folders or not set(splits) <= holding):
        raise ValueError(
            f"{container.path}: the folders {', '.join(splits)} look like splits, not classes; give one with "
            f"--split-dir, such as --split-dir {prefix}{splits[0]} (or --split-dir {prefix or '.'} if they are classes)"
        )


def _refuse_one_class(class_of: dict[str, str], folders: set[str], prefix: str, container: Container) -> None:
    """Refuse a single folder such as `images`, or one that holds only folders; report any other single folder."""
    (name,) = folders
    text = f"{container.path}: only one class folder, {prefix}{printable_name(name)}"
    unnamed = name.lower() in _NOT_A_CLASS
    if not unnamed and any("/" not in image[len(prefix) + len(name) + 1 :] for image in class_of):
        logger.warning("%s; a classifier needs two", text)
        return
    hint = ": images without class folders need a list of their labels (source `list`)" if unnamed else ""
    raise ValueError(
        f"{text}{hint}; give the folder that holds the class folders with --split-dir, or pass --allow-partial if "
        "there is only one class"
    )


def _tree(class_of: dict[str, str], folders: set[str], root: str, left_out: dict[str, str]) -> ClassFolders:
    class_names = sorted(folders)
    label_of = {class_name: label for label, class_name in enumerate(class_names)}
    names = sorted(class_of, key=lambda name: (class_of[name], name))
    labels = np.array([label_of[class_of[name]] for name in names], dtype=np.int64)
    return ClassFolders([printable_name(name) for name in class_names], names, labels, root, left_out)


def _say(tree: ClassFolders, container: Container) -> None:
    counts = np.bincount(tree.labels, minlength=len(tree.class_names)).tolist()
    each = [f"{name} {count}" for name, count in zip(tree.class_names, counts, strict=True)]
    where = f"the folders of {tree.root}" if tree.root else "the top-level folders"
    logger.info("%s: %d classes, %s, with images: %s", container.path, len(each), where, _shown(each))
    if tree.left_out:
        reasons = Counter(
            f"{PurePosixPath(name).suffix.lower() or 'no suffix'}{'' if why == 'no image suffix' else f' ({why})'}"
            for name, why in tree.left_out.items()
        )
        clutter = sorted({_clutter_part(name) for name, why in tree.left_out.items() if why == "clutter"})
        folders = f"; clutter of {_shown(clutter)}" if clutter else ""
        logger.warning("%s: left out %d files: %s%s", container.path, len(tree.left_out), _counted(reasons), folders)


def _clutter_part(name: str) -> str:
    return next(part for part in name.split("/") if _is_clutter(part))


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def _shown(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(printable_name(item) for item in items[:_SHOWN]) + more
