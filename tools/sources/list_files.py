"""Reading the lists that define a data set's images and their labels."""

from __future__ import annotations

import codecs
import json
import logging
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from shards.format import printable_name
from tools.sources.archives import plain_name

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LIKE_A_LIST = re.compile(rb"\s*(\{|[^\n]*[0-9]\s*(\n|$))")  # JSON, or a first line that ends with a number
_LONGEST_NUMBER = 9  # digits; int() refuses thousands of them with an error of its own


@dataclass(frozen=True)
class Listing:
    """The images of a list in its order: names relative to the image root, labels in [0, num_classes).

    class_names: from the file's own table of categories; None if it has no complete one.
    """

    names: list[str]
    labels: list[int]
    num_classes: int
    class_names: list[str] | None = None


def read_listing(path: Path, num_classes: int | None = None, strip_prefix: str = "", first_label: int = 0) -> Listing:
    """Reads a `path label` text list, an iNaturalist (COCO) JSON or an NCL JSON, told apart by suffix and content.

    num_classes: number of classes, if known; otherwise the file's own number, or its largest label + 1.
    strip_prefix: beginning of every path in the file that is not part of the name relative to the image root.
    first_label: the number of the first class in the file, if it has no table of categories.
    Raises FileNotFoundError, or ValueError with the wrong line or record.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list file")
    text = _decoded(path)
    parse = parse_json if path.suffix.lower() == ".json" else parse_lines
    try:
        return parse(text, num_classes, strip_prefix, first_label)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _decoded(path: Path) -> str:
    """The text, decoded as UTF-8, UTF-16 (as written by PowerShell) or, as a reported guess, Latin-1."""
    data = path.read_bytes()
    encoding = "utf-8-sig"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif len(data) > 1 and not any(data[1:2000:2]) and all(data[:2000:2]):
        encoding = "utf-16-le"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        at = error.start
    if encoding == "utf-8-sig" and _LIKE_A_LIST.match(data) and b"\0" not in data:
        logger.warning("%s: byte %d is not UTF-8; read as Latin-1 (Windows-1252)", path, at)
        return data.decode("cp1252", "replace")
    raise ValueError(
        f"{path}: not a text file: byte {at} is not {encoding[:6].upper()}; give the list itself, unpacked"
    )


class _Record(NamedTuple):
    """A line of a list or an entry of a JSON file: the path as written, the class, and its position."""

    path: str
    label: int
    where: str


def parse_lines(text: str, num_classes: int | None = None, strip_prefix: str = "", first_label: int = 0) -> Listing:
    """`path label` per line, separated by whitespace; the path may contain spaces, the last line may lack a newline."""
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.rsplit(maxsplit=1)
        if not fields:
            continue
        # "³".isdigit() is true, and int("1_0") is 10.
        if len(fields) != 2 or not (fields[1].isascii() and fields[1].removeprefix("-").isdigit()):
            hint = "; separated by a comma?" if re.search(r"[,;]\s*-?[0-9]+\s*$", line) else ""
            raise ValueError(f"line {number}: found {line[:80]!r}, expected a path, a space and a class number{hint}")
        label = _checked_label(fields[1], num_classes, first_label, f"line {number}")
        records.append(_Record(_unquoted(fields[0].lstrip()), label, f"line {number}"))
    if not records:
        raise ValueError("the list is empty, expected `path label` on every line")
    if num_classes is None:
        _refuse_labels_from_one(records)
    return _listing(records, num_classes, strip_prefix)


def parse_json(text: str, num_classes: int | None = None, strip_prefix: str = "", first_label: int = 0) -> Listing:
    """iNaturalist's `images`, `annotations` and `categories`, or NCL's `annotations` and `num_classes`."""
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON ({error}); is the download complete?") from error
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        raise ValueError("there is no list `annotations`; expected the JSON of iNaturalist or NCL with labels")
    if "images" in document:
        return _parse_inaturalist(document, num_classes, strip_prefix, first_label)
    return _parse_ncl(document, num_classes, strip_prefix)


def _parse_inaturalist(
    document: dict[str, Any], num_classes: int | None, strip_prefix: str, first_label: int
) -> Listing:
    category_of = _categories_of_images(document["annotations"])
    named = _named_categories(document.get("categories"))
    label_of, class_names = _labels_of_categories(category_of, named, num_classes)
    records = []
    for position, entry in enumerate(_field(document, "images", list, "the file")):
        where = f"images[{position}]"
        image = _id(entry, "id", where)
        if image not in category_of:
            raise ValueError(f"{where}: image {image} has no annotation; the public test files have no labels")
        category, annotated = category_of[image]
        if label_of is None:
            label = _checked_label(_whole_number(category, annotated), num_classes, first_label, annotated)
        else:
            label = label_of[category]
        records.append(_Record(_field(entry, "file_name", str, where), label, where))
    if not records:
        raise ValueError("the list of images is empty")
    if label_of is None and num_classes is None:
        _refuse_labels_from_one(records)
    return _listing(records, len(class_names) if class_names else num_classes, strip_prefix, class_names)


def _categories_of_images(annotations: list[Any]) -> dict[int | str, tuple[int | str, str]]:
    """By image: its category, and the annotation's position. Images are matched by image_id, not by order."""
    found: dict[int | str, tuple[int | str, str]] = {}
    repeated = 0
    for position, annotation in enumerate(annotations):
        where = f"annotations[{position}]"
        image, category = _id(annotation, "image_id", where), _id(annotation, "category_id", where)
        before = found.setdefault(image, (category, where))
        if before[0] != category:
            raise ValueError(
                f"{where}: a second label for image {image}: {category}, but {before[0]} in {before[1]}; "
                "one image has one class here"
            )
        repeated += before[1] != where
    if repeated:
        logger.warning("%d annotations repeat the class of their image (bounding boxes?)", repeated)
    return found


def _named_categories(categories: Any) -> dict[int | str, str]:
    """Category ids and their names, in the order of the ids: numbers before texts. Empty if there is no table."""
    if not isinstance(categories, list):
        return {}
    entries = [entry for entry in categories if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
    named = {entry["id"]: entry["name"] for entry in entries if type(entry.get("id")) in (int, str)}
    return dict(sorted(named.items(), key=lambda item: _order_of_ids(item[0])))


def _order_of_ids(category: int | str) -> tuple[bool, int, str]:
    number = str(category) if isinstance(category, str) else ""
    if isinstance(category, int):
        return False, category, ""
    if number.isascii() and number.isdigit() and len(number) <= _LONGEST_NUMBER:
        return False, int(number), number
    return True, 0, number


def _labels_of_categories(
    category_of: dict[int | str, tuple[int | str, str]], named: dict[int | str, str], num_classes: int | None
) -> tuple[dict[int | str, int] | None, list[str] | None]:
    """Labels by category id, and the class names; None and None if the file's numbers are the labels."""
    used = {category for category, _ in category_of.values()}
    if not used or not used <= named.keys():
        return None, None
    if list(named) == list(range(len(named))):
        if num_classes is not None and num_classes != len(named):
            return None, None
        return {label: label for label in range(len(named))}, [printable_name(name) for name in named.values()]
    kept = [category for category in named if category in used]
    if num_classes is not None and len(kept) != num_classes:
        raise ValueError(f"{len(kept)} categories have images, expected {num_classes}")
    logger.warning("categories are renumbered in the order of their ids: %d with images, of %d", len(kept), len(named))
    return {category: label for label, category in enumerate(kept)}, [printable_name(named[key]) for key in kept]


def _parse_ncl(document: dict[str, Any], num_classes: int | None, strip_prefix: str) -> Listing:
    stated = _field(document, "num_classes", int, "the file")
    if stated < 1 or (num_classes is not None and stated != num_classes):
        raise ValueError(f"num_classes is {stated}, expected {num_classes or 'at least 1'}")
    records = []
    for position, annotation in enumerate(document["annotations"]):
        where = f"annotations[{position}]"
        label = _checked_label(_field(annotation, "category_id", int, where), stated, 0, where)
        records.append(_Record(_field(annotation, "fpath", str, where), label, where))
    if not records:
        raise ValueError("the list of annotations is empty")
    return _listing(records, stated, strip_prefix)


def _listing(
    records: list[_Record], num_classes: int | None, strip_prefix: str, class_names: list[str] | None = None
) -> Listing:
    """Checks and normalised names for all kinds of lists."""
    # A file name on Unix may contain "\"; a list in which it is the only separator is from Windows.
    if any("\\" in record.path for record in records) and not any("/" in record.path for record in records):
        logger.warning('the paths of the list are separated by "\\"; read as "/"')
        records = [record._replace(path=record.path.replace("\\", "/")) for record in records]
        strip_prefix = strip_prefix.replace("\\", "/")
    first: dict[str, _Record] = {}
    for record in records:
        name = _relative_name(record.path, strip_prefix, record.where)
        before = first.setdefault(name, record)
        if before.label != record.label:
            raise ValueError(
                f"{record.where}: a second label for {name[:200]!r}: {record.label}, but {before.label} in "
                f"{before.where}; one image has one class here"
            )
    if len(first) < len(records):
        logger.warning(
            "%d of %d entries repeat an image; each image is used once", len(records) - len(first), len(records)
        )
    labels = [record.label for record in first.values()]
    return Listing(list(first), labels, max(labels) + 1 if num_classes is None else num_classes, class_names)


def _refuse_labels_from_one(records: list[_Record]) -> None:
    labels = {record.label for record in records}
    if len(labels) > 1 and labels == set(range(1, len(labels) + 1)):
        raise ValueError(
            f"labels run from 1 to {len(labels)}, expected from 0; pass --first-label 1, or --num-classes "
            f"{len(labels) + 1} if class 0 has no image in this list"
        )


def _unquoted(path: str) -> str:
    return path[1:-1] if len(path) > 2 and path[0] == path[-1] and path[0] in "\"'" else path


def _field(record: Any, key: str, kind: type[T], where: str) -> T:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: {key} is {str(value)[:80]!r}, expected {kind.__name__}")
    return value


def _id(record: Any, key: str, where: str) -> int | str:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(f"{where}: {key} is {str(value)[:80]!r}, expected a number or a text")
    return value


def _whole_number(category: int | str, where: str) -> int:
    if not isinstance(category, int):
        raise ValueError(
            f"{where}: category_id is {category[:80]!r}, expected a number, because no `categories` table names it"
        )
    return category


def _checked_label(label: str | int, num_classes: int | None, first_label: int, where: str) -> int:
    if isinstance(label, str) and len(label) > _LONGEST_NUMBER:
        raise ValueError(f"{where}: label {label[:20]} is out of range")
    number = int(label) - first_label
    if number < 0 or (num_classes is not None and number >= num_classes):
        last = "or more" if num_classes is None else f"to {num_classes - 1 + first_label}"
        hint = "" if first_label else " (labels start at zero; pass --first-label 1 if they start at one)"
        raise ValueError(f"{where}: label {int(label)} is out of range, expected {first_label} {last}{hint}")
    return number


def _relative_name(name: str, strip_prefix: str, where: str) -> str:
    if not name.startswith(strip_prefix):
        raise ValueError(f"{where}: path {name[:200]!r} does not start with --strip-prefix {strip_prefix!r}")
    name = name[len(strip_prefix) :].removeprefix("./")
    if strip_prefix:
        name = name.lstrip("/")
    if not is_one_line(name):
        raise ValueError(f"{where}: path {name[:200]!r} contains control characters")
    if name.startswith("/") or re.match(r"[A-Za-z]:[/\\]", name) or not plain_name(name):
        raise ValueError(
            f"{where}: path {name[:200]!r} is not relative; pass the part that --images replaces as --strip-prefix"
        )
    if "/../" in f"/{name}/":
        raise ValueError(f"{where}: path {name[:200]!r} leaves the image folder")
    return plain_name(name)


def is_one_line(name: str) -> bool:
    """Whether a name can be written as one line of UTF-8: no control character, line separator or lone surrogate.

    File names on Unix may contain any of them.
    """
    return name.isprintable() or not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name)


def class_names_of_folders(names: Sequence[str], labels: Sequence[int], num_classes: int) -> list[str]:
    """Class names for a list without a table of them: the images' folder, if each class has its own.

    "train/n01440764/x.JPEG" gives "n01440764"; if folders do not distinguish the classes, "class_0", "class_1" ….
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
