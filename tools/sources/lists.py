"""Reading the lists that say which images belong to a data set, and which label each has."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """The images of a list in its order: names relative to the image root, labels in [0, num_classes).

    class_names: of the file's own table of categories; None where it has no complete one.
    """

    names: list[str]
    labels: list[int]
    num_classes: int
    class_names: list[str] | None = None


def read_listing(path: Path, num_classes: int | None = None, strip_prefix: str = "") -> Listing:
    """Reads a `path label` text list, an iNaturalist (COCO) JSON or an NCL JSON, told apart by suffix and content.

    num_classes: of the data set, if known; otherwise what the file says, or its largest label + 1.
    strip_prefix: beginning of every path in the file that does not belong to the name below the image root.
    Raises FileNotFoundError, or ValueError with the line or record that is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no text: byte {error.start} is not UTF-8; give the list itself, unpacked") from error
    parse = parse_json if path.suffix.lower() == ".json" else parse_lines
    try:
        return parse(text, num_classes, strip_prefix)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_lines(text: str, num_classes: int | None = None, strip_prefix: str = "") -> Listing:
    """`path label` per line, separated by white space; the path may hold spaces, the last line may lack its end."""
    names, labels = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.rsplit(maxsplit=1)
        if not fields:
            continue
        # "³".isdigit() is true, and int("1_0") is 10.
        if len(fields) != 2 or not (fields[1].isascii() and fields[1].removeprefix("-").isdigit()):
            raise ValueError(f"line {number}: found {line[:80]!r}, expected a path, a space and a class number")
        names.append(_relative_name(fields[0].lstrip(), strip_prefix, f"line {number}"))
        labels.append(_checked_label(fields[1], num_classes, f"line {number}"))
    if not names:
        raise ValueError("the list is empty, expected `path label` in every line")
    return Listing(names, labels, max(labels) + 1 if num_classes is None else num_classes)


def parse_json(text: str, num_classes: int | None = None, strip_prefix: str = "") -> Listing:
    """iNaturalist's `images`, `annotations` and `categories`, or NCL's `annotations` and `num_classes`."""
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); is the download complete?") from error
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        raise ValueError("no list `annotations` inside; expected the JSON of iNaturalist or NCL with its labels")
    if "images" in document:
        return _parse_inaturalist(document, num_classes, strip_prefix)
    return _parse_ncl(document, num_classes, strip_prefix)


def _parse_inaturalist(document: dict[str, Any], num_classes: int | None, strip_prefix: str) -> Listing:
    # Most releases list images and annotations in the same order, but only image_id says which belong together.
    label_of: dict[int, int] = {}
    for position, annotation in enumerate(document["annotations"]):
        where = f"annotations[{position}]"
        image = _field(annotation, "image_id", int, where)
        if image in label_of:
            raise ValueError(
                f"{where}: a second label for image {image}; expected one an image (not the bounding boxes)"
            )
        label_of[image] = _checked_label(_field(annotation, "category_id", int, where), num_classes, where)
    names, labels = [], []
    for position, entry in enumerate(_field(document, "images", list, "the file")):
        where = f"images[{position}]"
        image = _field(entry, "id", int, where)
        if image not in label_of:
            raise ValueError(f"{where}: image {image} has no annotation; the public test files have no labels")
        names.append(_relative_name(_field(entry, "file_name", str, where), strip_prefix, where))
        labels.append(label_of[image])
    if not names:
        raise ValueError("the list of images is empty")
    found_classes = max(labels) + 1 if num_classes is None else num_classes
    return Listing(names, labels, found_classes, _category_names(document.get("categories"), found_classes))


def _category_names(categories: Any, num_classes: int) -> list[str] | None:
    if not isinstance(categories, list):
        return None
    entries = [entry for entry in categories if isinstance(entry, dict)]
    name_of = {entry.get("id"): entry["name"] for entry in entries if isinstance(entry.get("name"), str)}
    names = [name_of.get(label) for label in range(num_classes)]
    return [name for name in names if name is not None] if None not in names else None


def _parse_ncl(document: dict[str, Any], num_classes: int | None, strip_prefix: str) -> Listing:
    stated = _field(document, "num_classes", int, "the file")
    if stated < 1 or (num_classes is not None and stated != num_classes):
        raise ValueError(f"num_classes is {stated}, expected {num_classes or 'at least 1'}")
    names, labels = [], []
    for position, annotation in enumerate(document["annotations"]):
        where = f"annotations[{position}]"
        names.append(_relative_name(_field(annotation, "fpath", str, where), strip_prefix, where))
        labels.append(_checked_label(_field(annotation, "category_id", int, where), stated, where))
    if not names:
        raise ValueError("the list of annotations is empty")
    return Listing(names, labels, stated)


def _field(record: Any, key: str, kind: type[T], where: str) -> T:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: {key} is {str(value)[:80]!r}, expected {kind.__name__}")
    return value


def _checked_label(label: str | int, num_classes: int | None, where: str) -> int:
    if isinstance(label, str) and len(label) > 9:  # int() refuses thousands of digits with an error of its own
        raise ValueError(f"{where}: label {label[:20]} is out of range")
    number = int(label)
    if number < 0 or (num_classes is not None and number >= num_classes):
        expected = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        raise ValueError(f"{where}: label {number} is out of range, expected {expected} (labels count from zero)")
    return number


def _relative_name(name: str, strip_prefix: str, where: str) -> str:
    if not name.startswith(strip_prefix):
        raise ValueError(f"{where}: path {name[:200]!r} does not begin with --strip-prefix {strip_prefix!r}")
    name = name[len(strip_prefix) :].removeprefix("./")
    if strip_prefix:
        name = name.lstrip("/")
    if not is_one_line(name):
        raise ValueError(f"{where}: path {name[:200]!r} holds control characters")
    if name in ("", ".") or name.startswith("/"):
        raise ValueError(
            f"{where}: path {name[:200]!r} is not relative; give what --images replaces with --strip-prefix"
        )
    if "/../" in f"/{name}/":
        raise ValueError(f"{where}: path {name[:200]!r} leaves the image folder")
    return name


def is_one_line(name: str) -> bool:
    """Whether a name can be written as one line of UTF-8: no control character, line separator or lone surrogate.

    File names on Unix may hold any of them.
    """
    return name.isprintable() or not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name)


def class_names_of_folders(names: Sequence[str], labels: Sequence[int], num_classes: int) -> list[str]:
    """Class names of a list without a table of them: the folder of the images, if each class has its own.

    "train/n01440764/x.JPEG" gives "n01440764"; where folders do not tell the classes apart, "class_0", "class_1" ….
    """
    folder_of: dict[int, str] = {}
    for name, label in zip(names, labels, strict=True):
        folder = name.rpartition("/")[0]
        if folder_of.setdefault(label, folder) != folder:
            break
    else:
        for candidates in ({k: folder.rpartition("/")[2] for k, folder in folder_of.items()}, folder_of):
            if len(set(candidates.values())) == len(candidates) and all(candidates.values()):
                return [candidates.get(label, f"class_{label}") for label in range(num_classes)]
    return [f"class_{label}" for label in range(num_classes)]
