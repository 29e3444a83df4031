"""dataset.json reads back as written and refuses what is damaged; by_class.npy lists every sample once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.format import (
    INDEX_DTYPE,
    DatasetInfo,
    FileInfo,
    ShardInfo,
    by_class_array,
    content_checksum,
    npy_header,
    printable_name,
    read_dataset_info,
)

INFO = DatasetInfo(
    name="made-up",
    split="train",
    class_names=("Bär", "cat"),
    samples_per_class=(2, 1),
    shards=(ShardInfo("000000.tar", 3072, "ab", 2), ShardInfo("000001.tar", 2048, "cd", 1)),
    files=(FileInfo("index.npy", 200, "ef"), FileInfo("by_class.npy", 150, "01"), FileInfo("sources.txt", 30, "23")),
    options={"seed": 0, "source": {"imb_factor": 0.01}},
    inputs={"a.tar": {"bytes": 7}},
    counts={"jpeg": 3},
    made_with={"pillow": "12"},
)


def test_dataset_info_reads_back_as_written() -> None:
    assert DatasetInfo.from_json(INFO.to_json(), "here") == INFO
    assert INFO.num_samples == 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 2, "version 2 found"),
        ("class_names", ["cat"], "1 class names but 2 class counts"),
        ("class_names", [1, 2], "text expected, 1 found"),
        ("samples_per_class", [2, 2], "4 samples by class but 3 by shard"),
        ("samples_per_class", [4, -1], "at least 0"),
        ("shards", [{"file": "../x.tar", "bytes": 1, "sha256": "", "samples": 3}], "not 000000.tar"),
        ("shards", [{"file": "000000.tar"}], "'bytes' is missing"),
        ("files", [], "files are not"),
        ("options", [], "options is not an object"),
        ("surprise", 1, "unknown entries"),
    ],
)
def test_damaged_dataset_json_is_refused_with_place_and_reason(key: str, value: object, message: str) -> None:
    record = json.loads(INFO.to_json())
    record[key] = value
    with pytest.raises(ValueError, match="here: ") as caught:
        DatasetInfo.from_json(json.dumps(record), "here")
    assert message in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_dataset_json_raises_value_error_or_parses(data: st.DataObject) -> None:
    text = INFO.to_json()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    mutated = text[:start] + data.draw(st.text(max_size=8)) + text[end:]
    try:
        info = DatasetInfo.from_json(mutated, "here")
    except ValueError as error:
        assert str(error).startswith("here: ")
    else:
        assert sum(info.samples_per_class) == info.num_samples


@settings(max_examples=100, deadline=None)
@given(value=st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda x: st.lists(x, max_size=3)))
@pytest.mark.parametrize("key", ["name", "class_names", "samples_per_class", "shards", "files", "inputs"])
def test_any_value_in_any_entry_raises_value_error_or_parses(key: str, value: object) -> None:
    record = {**json.loads(INFO.to_json()), key: value}
    try:
        DatasetInfo.from_json(json.dumps(record), "here")
    except ValueError as error:
        assert str(error).startswith("here: ")


def test_absent_set_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_dataset_info(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"dataset.json: not found.*run the command"):
        read_dataset_info(tmp_path)


@given(st.lists(st.integers(0, 4), max_size=40))
def test_by_class_array_equals_slow_grouping(labels: list[int]) -> None:
    array = by_class_array(np.array(labels, np.uint32), num_classes=5)
    starts, ids = array[:6].tolist(), array[6:].tolist()
    groups = [[i for i, label in enumerate(labels) if label == c] for c in range(5)]
    assert [ids[starts[c] : starts[c + 1]] for c in range(5)] == groups
    assert starts[-1] == len(labels)


@pytest.mark.parametrize("dtype", [INDEX_DTYPE, np.dtype("<u4")])
@pytest.mark.parametrize("length", [0, 1, 99, 12_345_678])
def test_npy_header_is_numpys(dtype: np.dtype, length: int) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.broadcast_to(np.zeros((), dtype), length)[:99])
    if length <= 99:
        assert buffer.getvalue().startswith(npy_header(dtype, length))
    stream = io.BytesIO(npy_header(dtype, length)[8:])
    assert np.lib.format.read_array_header_1_0(stream) == ((length,), False, dtype)
    assert len(npy_header(dtype, length)) % 64 == 0


def test_checksum_depends_on_data_and_classes_only() -> None:
    record = json.loads(INFO.to_json())

    def checksum(**changes: object) -> str:
        return content_checksum(DatasetInfo.from_json(json.dumps({**record, **changes}), ""))

    assert checksum(name="other", split="val", options={}, counts={}) == checksum()
    assert checksum(class_names=["cat", "Bär"]) != checksum()
    changed = [{**record["shards"][0], "sha256": "xy"}, record["shards"][1]]
    assert checksum(shards=changed) != checksum()


@pytest.mark.parametrize("name", ["a/b c.jpg", "Bär/ä.jpg", "line\nbreak\t.jpg", "latin\udce9.jpg", "\u2028"])
def test_a_name_is_one_line_of_utf8(name: str) -> None:
    line = printable_name(name)
    assert line.encode() and len(line.splitlines()) == 1
    assert line == name or not name.isprintable()
