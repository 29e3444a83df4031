"""List files: what they may look like, what is refused, and with which words."""

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.archives import class_folders, write_tree
from tests.helpers.source_commands import contents, sources_of, the_source
from tools.sources.list_files import class_names_of_folders, parse_json, parse_lines, read_listing
from tools.sources.listed_images import PLACES_LT, splits_of

SHARED_LISTS = Path(__file__).parents[3] / "shared" / "data" / "lists"


@pytest.mark.parametrize(
    ("name", "records", "per_class", "first"),
    [
        ("ImageNet_LT_val.txt", 20_000, 20, ("train/n01440764/n01440764_762.JPEG", 0)),
        (
            "iNaturalist18_val.txt",
            24_426,
            3,
            ("train_val2018/Plantae/7291/9f8ecb39e5f767e39e9b28e34488f179.jpg", 7291),
        ),
    ],
)
@pytest.mark.skipif(not SHARED_LISTS.is_dir(), reason="needs the published lists in ../shared/data/lists")
def test_the_published_lists_parse_completely(name: str, records: int, per_class: int, first: tuple[str, int]) -> None:
    listing = read_listing(SHARED_LISTS / name)
    assert len(listing.names) == len(set(listing.names)) == records
    assert {listing.labels.count(label) for label in (0, 1, listing.num_classes - 1)} == {per_class}
    assert len(set(listing.labels)) == listing.num_classes == records // per_class
    assert (listing.names[0], listing.labels[0]) == first


def test_lines_may_hold_spaces_blanks_and_foreign_line_ends() -> None:
    listing = parse_lines("a b/c d.jpg 1\r\n\n  ./x.jpg\t0 \n\u00e9/\u6f22\u3000\u5b57.jpg 02")
    assert listing.names == ["a b/c d.jpg", "x.jpg", "é/漢\u3000字.jpg"]
    assert listing.labels == [1, 0, 2]
    assert listing.num_classes == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list is empty"),
        ("\n \n", "the list is empty"),
        ("a.jpg 0\nb.jpg\n", "line 2: found 'b.jpg', expected a path, a space and a class number"),
        ("a.jpg 0\n\nb.jpg x\n", "line 3: found 'b.jpg x'"),
        ("a.jpg 1_0", "line 1: found"),
        ("a.jpg ²", "line 1: found"),
        ("a.jpg -1", "line 1: label -1 is out of range, expected 0 to 4"),
        ("a.jpg 5", "line 1: label 5 is out of range, expected 0 to 4"),
        ("a.jpg " + "9" * 5000, "line 1: label 9{20} is out of range"),
        ("/data/a.jpg 0", "line 1: path '/data/a.jpg' is not relative; pass .* --strip-prefix"),
        ("x/../../a.jpg 0", "line 1: path .* leaves the image folder"),
        ("a\0b.jpg 0", "line 1: path .* control characters"),
        (". 0", "line 1: path .* is not relative"),
    ],
)
def test_a_bad_line_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_lines(text, num_classes=5)


@given(st.text(alphabet=st.sampled_from("a/. \t\n\r\0-_01²٣\ud800é"), max_size=40), st.none() | st.integers(1, 3))
def test_any_text_is_parsed_or_refused(text: str, num_classes: int) -> None:
    try:
        listing = parse_lines(text, num_classes)
    except ValueError:
        return
    assert len(listing.names) == len(listing.labels) > 0
    assert all(0 <= label < listing.num_classes for label in listing.labels)
    assert not any(name.startswith("/") or ".." in name.split("/") for name in listing.names)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.just("a.jpg"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["images", "annotations", "categories", "id", "image_id", "category_id"])
            | st.sampled_from(["file_name", "fpath", "num_classes", "name"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(json_values, json_values, json_values, json_values)
def test_any_json_is_parsed_or_refused(images: Any, annotations: Any, categories: Any, num_classes: Any) -> None:
    inaturalist = {"images": images, "annotations": annotations, "categories": categories}
    for document in (images, inaturalist, {"annotations": annotations, "num_classes": num_classes}):
        try:
            listing = parse_json(json.dumps(document))
        except ValueError:
            continue
        assert all(0 <= label < listing.num_classes for label in listing.labels)


COCO = {
    "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 5, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 5, "category_id": 1}, {"image_id": 7, "category_id": 0}],
    "categories": [{"id": 1, "name": "one"}, {"id": 0, "name": "zero"}],
}


def test_inaturalist_images_and_labels_are_joined_by_id() -> None:
    listing = parse_json(json.dumps(COCO))
    assert (listing.names, listing.labels, listing.class_names) == (["b.jpg", "a.jpg"], [0, 1], ["zero", "one"])
    assert parse_json(json.dumps({**COCO, "categories": COCO["categories"][:1]})).class_names is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": COCO["annotations"][:1]}, r"images\[0\]: image 7 has no annotation; .* test files"),
        (
            {"annotations": [*COCO["annotations"], {"image_id": 5, "category_id": 0}]},
            r"annotations\[2\]: a second label for image 5",
        ),
        ({"annotations": None}, "no list `annotations`"),
        ({"images": {}}, "the file: images is '{}', expected list"),
        ({"images": []}, "list of images is empty"),
        ({"images": [{"id": 5}]}, r"images\[0\]: file_name is 'None', expected str"),
        ({"annotations": [{"image_id": 5, "category_id": True}]}, r"annotations\[0\]: category_id is 'True'"),
    ],
)
def test_a_bad_inaturalist_record_is_named(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(json.dumps({**COCO, **change}))


def test_ncl_json_with_its_absolute_paths() -> None:
    annotations = [{"fpath": f"/mnt/data/train/{k}.jpg", "image_id": k, "category_id": k % 3} for k in range(4)]
    text = json.dumps({"annotations": annotations, "num_classes": 3})
    listing = parse_json(text, strip_prefix="/mnt/data")
    assert listing.names == [f"train/{k}.jpg" for k in range(4)]
    assert (listing.labels, listing.num_classes) == ([0, 1, 2, 0], 3)
    for arguments, message in [
        ((text, None), "is not relative"),
        ((text, None, "/other"), "does not start with --strip-prefix '/other'"),
        ((text, 365, "/mnt/data"), "num_classes is 3, expected 365"),
        ((text.replace('"num_classes": 3', '"num_classes": 2'), None, "/mnt/data"), r"annotations\[2\]: label 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_json(*arguments)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", "3", '{"annotations": 4}'])
def test_what_is_no_list_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not JSON|no list `annotations`"):
        parse_json(text)


def test_an_archive_given_as_the_list_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match=r"train\.txt: not a text file: byte 0"):
        read_listing(tmp_path / "train.txt")
    with pytest.raises(FileNotFoundError, match="no such list file"):
        read_listing(tmp_path / "val.txt")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["t/n1/a", "t/n0/b", "t/n1/c"], ["n1", "n0", "class_2"]),
        (["b/bakery/shop/1", "g/gift/shop/1", "b/bakery/shop/2"], ["b/bakery/shop", "g/gift/shop", "class_2"]),
        (["val/1", "val/2", "val/3"], ["class_0", "class_1", "class_2"]),
        (["x/1", "y/2", "z/3"], ["class_0", "class_1", "class_2"]),
        (["1", "2", "3"], ["class_0", "class_1", "class_2"]),
    ],
)
def test_class_names_are_folders_where_folders_tell_the_classes_apart(names: list[str], expected: list[str]) -> None:
    assert class_names_of_folders(names, [0, 1, 0], 3) == expected


def test_splits_are_read_from_the_file_names() -> None:
    lists = [Path("Places_LT_train.txt"), Path("val2018.json"), Path("x_TEST.txt")]
    assert splits_of(lists, None) == ["train", "val", "test"]
    assert splits_of([Path("mine.txt")], "test") == ["test"]
    for paths, split, message in [
        ([Path("mine.txt")], None, "pass --split"),
        ([Path("train_val2018.txt")], None, "pass --split"),
        (lists, "val", "omit it"),
        (lists[:1] * 2, None, "one list per split"),
    ]:
        with pytest.raises(ValueError, match=message):
            splits_of(paths, split)


def test_ones_own_list_over_a_folder(tmp_path: Path) -> None:
    files = class_folders()
    images = write_tree(tmp_path / "images", files)
    lines = [f"{name} {name.split('/')[0][-1]}" for name in files]
    (tmp_path / "my_train.txt").write_text("\n".join(lines))
    source = the_source("list", "--images", images, "--list", tmp_path / "my_train.txt")
    assert contents(source) == [(name, int(name.split("/")[0][-1]), data) for name, data in files.items()]
    assert (source.name, source.split, source.class_names) == ("list", "train", [f"class_{k}" for k in range(4)])
    with pytest.raises(ValueError, match=r"2 of 6 classes have no image: 'class_4' \(label 4\), 'class_5'"):
        the_source("list", "--images", images, "--list", tmp_path / "my_train.txt", "--num-classes", 6)


def test_places_lt_knows_its_numbers(tmp_path: Path) -> None:
    assert (PLACES_LT.num_classes, dict(PLACES_LT.samples)) == (365, {"train": 62_500, "val": 7_300, "test": 36_500})
    (tmp_path / "Places_LT_val.txt").write_text("data_256/a/airfield/00000001.jpg 0\n")
    with pytest.raises(ValueError, match=r"places-lt val: the list has 1 images, the published one 7300"):
        sources_of("places-lt", "--images", tmp_path, "--list", tmp_path / "Places_LT_val.txt")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_lists_of_other_programs_are_read(tmp_path: Path, encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    text = "cafe/cr\u00e8me 1.jpg 1\r\nriz/0.jpg 0\r\n"
    (tmp_path / "x.txt").write_bytes((codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b"") + text.encode(encoding))
    assert read_listing(tmp_path / "x.txt").names == ["cafe/cr\u00e8me 1.jpg", "riz/0.jpg"]
    assert ("read as Latin-1" in caplog.text) == (encoding == "latin-1")


def test_quotes_and_the_separators_of_windows_are_understood(caplog: pytest.LogCaptureFixture) -> None:
    listing = parse_lines('"my cats\\a b.jpg" 0\ndogs\\b.jpg 1\n')
    assert listing.names == ["my cats/a b.jpg", "dogs/b.jpg"]
    assert "separated by" in caplog.text
    assert parse_lines("a\\b.jpg 0\nc/d.jpg 1").names == ["a\\b.jpg", "c/d.jpg"]  # on Unix a letter as any other
    with pytest.raises(ValueError, match=r"path 'C:/x/a\.jpg' is not relative; pass .* --strip-prefix"):
        parse_lines("C:\\x\\a.jpg 0")


def test_an_image_counts_once_and_has_one_class(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_lines("a.jpg 0\nb.jpg 1\n./a.jpg 0").names == ["a.jpg", "b.jpg"]
    assert "1 of 3 entries repeat an image" in caplog.text
    with pytest.raises(ValueError, match=r"line 3: a second label for 'a\.jpg': 1, but 0 in line 1"):
        parse_lines("a.jpg 0\nb.jpg 1\na.jpg 1")


def test_labels_from_one_are_refused_with_the_option() -> None:
    with pytest.raises(ValueError, match=r"labels run from 1 to 2, expected from 0; pass --first-label 1"):
        parse_lines("a.jpg 1\nb.jpg 2")
    assert parse_lines("a.jpg 1\nb.jpg 2", first_label=1).labels == [0, 1]
    assert parse_lines("a.jpg 1\nb.jpg 2", num_classes=3).labels == [1, 2]
    with pytest.raises(ValueError, match=r"line 1: label 0 is out of range, expected 1 or more"):
        parse_lines("a.jpg 0\nb.jpg 1", first_label=1)
    with pytest.raises(ValueError, match="separated by a comma"):
        parse_lines("a.jpg,1")


def test_categories_with_gaps_and_text_ids_are_numbered_in_their_order(caplog: pytest.LogCaptureFixture) -> None:
    document = {
        "images": [{"id": "x", "file_name": "a.jpg"}, {"id": 5, "file_name": "b.jpg"}],
        "annotations": [{"image_id": "x", "category_id": "16"}, {"image_id": 5, "category_id": 3}] * 2,
        "categories": [{"id": "16", "name": "dog"}, {"id": 0, "name": "empty"}, {"id": 3, "name": "c\ud800t"}],
    }
    listing = parse_json(json.dumps(document))
    assert (listing.labels, listing.class_names, listing.num_classes) == ([1, 0], ["c\\ud800t", "dog"], 2)
    assert "2 with images, of 3" in caplog.text
    assert "2 annotations repeat the class" in caplog.text
    with pytest.raises(ValueError, match="2 categories have images, expected 3"):
        parse_json(json.dumps(document), num_classes=3)
    with pytest.raises(ValueError, match=r"annotations\[0\]: category_id is '16', expected a number, because no"):
        parse_json(json.dumps({**document, "categories": None}))
