"""Near-duplicates between two sets: copies in another size and quality are found, other images are not."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtail import build
from tests.helpers.pictures import photo
from tools.inspect_shards import main
from tools.near_duplicates import MAX_DISTANCE, fingerprint, matches, near_duplicates


def test_matches_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    first = {i: int.from_bytes(rng.bytes(16), "big") for i in range(60)}
    second = {}
    for i in range(60):  # 0 to 9 bits away, one flipped bit per draw
        value = first[i]
        for bit in rng.choice(128, i % 10, replace=False):
            value ^= 1 << int(bit)
        second[i] = value
    slow = {(a, b) for a in first for b in second if (first[a] ^ second[b]).bit_count() <= MAX_DISTANCE}
    assert {(pair.first, pair.second) for pair in matches(first, second)} == slow
    assert len(slow) >= 42


def test_sizes_and_compression_do_not_change_an_image_but_its_subject_does() -> None:
    prints = []
    for number in range(20):
        picture = Image.fromarray(photo(number, 200, 160))
        buffer = io.BytesIO()
        picture.resize((90, 72)).save(buffer, "JPEG", quality=60)
        one, other = fingerprint(picture), fingerprint(Image.open(io.BytesIO(buffer.getvalue())))
        assert one is not None and other is not None and (one ^ other).bit_count() <= MAX_DISTANCE
        prints.append(one)
    closest = min((a ^ b).bit_count() for i, a in enumerate(prints) for b in prints[:i])
    assert closest > MAX_DISTANCE
    assert fingerprint(Image.new("RGB", (50, 50), "blue")) is None


def test_inspect_names_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, seeds in (("train", range(6)), ("test", (3, 40, 41))):
        for seed in seeds:
            path = tmp_path / "photos" / split / "Gebäude" / f"{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = (80, 64) if split == "train" else (120, 96)
            Image.fromarray(photo(seed, 200, 160)).resize(size).save(path)
    train, test = (build(tmp_path / "photos", tmp_path / split, split_dir=split) for split in ("train", "test"))
    (pair,) = near_duplicates(train, test)
    assert test.source_of(pair.second).endswith("3.png") and train.source_of(pair.first).endswith("3.png")
    capsys.readouterr()
    sheet = tmp_path / "sheet.png"
    arguments = [str(tmp_path / "train"), "--against", str(tmp_path / "test"), "--contact-sheet", str(sheet)]
    assert main(arguments) == 0
    assert "near-duplicates: 1 images" in capsys.readouterr().out
    assert main([str(tmp_path / "test"), "--against", str(tmp_path / "test"), "--json"]) == 0
    assert capsys.readouterr().out.count('"distance": 0') == 3
