"""The table "Which files, under which name" of docs/shard-format.md, row by row."""

import io
import logging
import tarfile
import zipfile
from pathlib import Path

import pytest

from shards.reader import ShardSet
from tests.helpers.archives import image_bytes, write_tree, zip_bytes
from tests.helpers.source_commands import contents, the_source
from tools.build_shards import main

PAGE = Path(__file__).parents[2] / "docs" / "shard-format.md"
JPEG = image_bytes(0, 0)


def names(images: Path, *arguments: object) -> tuple[list[str], list[str]]:
    source = the_source("imagefolder", "--images", images, *arguments)
    return source.class_names, [name for name, _, _ in contents(source)]


def folder_and_zip(tmp_path: Path, files: dict[str, bytes]) -> list[Path]:
    (tmp_path / "set.zip").write_bytes(zip_bytes(files))
    return [write_tree(tmp_path / "set", files), tmp_path / "set.zip"]


def row(text: str) -> str:
    """The right-hand side of a row of the page, so that what is tested is what is promised."""
    (line,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|") and text in line]
    return line.split(" | ")[1]


def test_names_are_those_of_the_unpacked_files(tmp_path: Path) -> None:
    assert "class `cat`; `cat/a.jpg`, `cat/2019/b.PNG`, `cat/c.jfif`, `cat/d.gif`" in row("`./cat/c.jfif`")
    files = dict.fromkeys(("cat/a.jpg", "cat/2019/b.PNG", "./cat/c.jfif", "/cat/d.gif", "dog/e.jpg"), JPEG)
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    found = names(tmp_path / "set.tar")
    assert found == (["cat", "dog"], ["cat/2019/b.PNG", "cat/a.jpg", "cat/c.jfif", "cat/d.gif", "dog/e.jpg"])


def test_one_folder_around_everything_is_unwrapped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "classes `cat` and `dog`" in row("one folder around everything")
    for images in folder_and_zip(tmp_path, {"photos/cat/a.jpg": JPEG, "photos/dog/b.jpg": JPEG, "photos/README": b""}):
        assert names(images) == (["cat", "dog"], ["photos/cat/a.jpg", "photos/dog/b.jpg"])
        assert "everything is in the folder photos" in caplog.text
        assert names(images, "--split-dir", "photos") == (["cat", "dog"], ["photos/cat/a.jpg", "photos/dog/b.jpg"])
        with pytest.raises(ValueError, match=r"only one class folder, photos.*; give the folder"):
            names(images, "--split-dir", ".")


@pytest.mark.parametrize("more", ["test/cat/b.jpg", "extras/c.jpg", "val/d.jpg"])
def test_splits_are_refused_with_the_option(tmp_path: Path, more: str) -> None:
    assert "refused: choose with `--split-dir train`" in row("`train/cat/a.jpg`")
    files = {"train/cat/a.jpg": JPEG, "train/dog/b.jpg": JPEG, more: JPEG}
    for images in folder_and_zip(tmp_path, files):
        with pytest.raises(ValueError, match=r"look like splits, not classes; .* --split-dir"):
            names(images)
        for split_dir in ("train", "./train", "train/"):
            assert names(images, "--split-dir", split_dir)[0] == ["cat", "dog"]
    assert names(tmp_path / "set", "--split-dir", tmp_path / "set" / "train")[0] == ["cat", "dog"]


def test_split_folders_inside_one_folder_are_found(tmp_path: Path) -> None:
    files = {"tiny/train/cat/images/a.jpg": JPEG, "tiny/train/dog/images/b.jpg": JPEG, "tiny/val/images/c.jpg": JPEG}
    for images in folder_and_zip(tmp_path, files):
        with pytest.raises(ValueError, match=r"the folders train, val look like splits, .* --split-dir tiny/train"):
            names(images)
        assert names(images, "--split-dir", "train")[0] == ["cat", "dog"]
        with pytest.raises(ValueError, match=r"only one class folder, tiny/val/images: .* need a list"):
            names(images, "--split-dir", "val")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for images in folder_and_zip(tmp_path, {"car/a.jpg": JPEG, "train/b.jpg": JPEG}):
        assert names(images)[0] == ["car", "train"]


def test_clutter_and_other_files_are_left_out_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "listed in `left_out.txt`" in row("`@eaDir/…`")
    clutter = ("cat/.hidden.jpg", "__MACOSX/cat/._a.jpg", "cat/@eaDir/a.jpg/SYNO_M.jpg", "#recycle/cat/old.jpg")
    files = dict.fromkeys(("cat/a.jpg", "dog/b.jpg", *clutter), JPEG) | {"cat/Thumbs.db": b"", "notes.txt": b""}
    for images in folder_and_zip(tmp_path, files):
        assert names(images) == (["cat", "dog"], ["cat/a.jpg", "dog/b.jpg"])
        assert "left out 6 files: 1 .db, 4 .jpg (clutter), 1 .txt" in caplog.text
        caplog.clear()
    assert main(["imagefolder", "--images", str(images), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    lines = (tmp_path / "out" / "left_out.txt").read_text(encoding="utf-8").splitlines()
    assert "cat/@eaDir/a.jpg/SYNO_M.jpg\tclutter" in lines
    assert len(lines) == 6
    assert len(ShardSet.open(tmp_path / "out")) == 2


def test_a_link_to_a_folder_above_it_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = write_tree(tmp_path / "set", {"cat/a.jpg": JPEG, "dog/b.jpg": JPEG})
    (images / "cat" / "up").symlink_to("..")
    assert names(images) == (["cat", "dog"], ["cat/a.jpg", "dog/b.jpg"])
    assert "a link to one of its parent folders; not entered again" in caplog.text


def test_bad_files_follow_on_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a bad image (`--on-bad`)" in row("a link that leads nowhere")
    images = write_tree(tmp_path / "set", {"cat/a.jpg": JPEG, "dog/b.jpg": JPEG})
    (images / "cat" / "gone.jpg").symlink_to("nothing.jpg")
    command = ["imagefolder", "--images", str(images), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 1
    assert "cat/gone.jpg: cannot be read: No such file or directory" in capsys.readouterr().err
    assert main([*command, "--on-bad", "skip"]) == 0
    assert "cat/gone.jpg" in (tmp_path / "out" / "bad.jsonl").read_text(encoding="utf-8")


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    assert r"`caf\udce9/a.jpg`" in row("a name that is not UTF-8")
    images = write_tree(tmp_path / "set", {"caf\udce9/a.jpg": JPEG, "dog/b\n.jpg": JPEG})
    assert main(["imagefolder", "--images", str(images), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    opened = ShardSet.open(tmp_path / "out")
    assert sorted(opened.source_of(i) for i in range(2)) == [r"caf\udce9/a.jpg", r"dog/b\n.jpg"]
    assert opened.info.class_names == (r"caf\udce9", "dog")


@pytest.mark.parametrize("second", [True, False])
def test_several_archives_in_one_file_are_refused(tmp_path: Path, second: bool) -> None:
    assert "refused: unpack it and give the folder" in row("two archives in one file")
    parts = [tmp_path / f"{number}.tar" for number in (1, 2)]
    for part in parts:
        with tarfile.open(part, "w") as tar:
            tar.add(write_tree(tmp_path / "tree", {"cat/a.jpg": JPEG, "dog/b.jpg": JPEG}), ".")
    images = tmp_path / "both.tar"
    images.write_bytes(parts[0].read_bytes() + (parts[1].read_bytes() if second else b"junk" * 999))
    if second:
        with pytest.raises(ValueError, match=r"several archives in one file: .* --ignore-zeros"):
            names(images)
    else:  # which unpacking programs leave alone
        assert names(images)[0] == ["cat", "dog"]
    packed = zip_bytes({"cat/a.jpg": JPEG, "dog/b.jpg": JPEG})
    images.write_bytes(packed + packed)
    with pytest.raises(ValueError, match="several archives in one file: the last one begins"):
        names(images)


def test_members_that_cannot_be_read_are_refused_before_the_build(tmp_path: Path) -> None:
    data = zip_bytes({"cat/a.jpg": JPEG, "dog/b.jpg": JPEG})
    for bytes_changed, message in (((8, 1), "is encrypted"), ((10, 9), "compressed with Deflate64")):
        changed = bytearray(data)
        at = data.index(b"PK\x01\x02")
        changed[at + bytes_changed[0]] |= bytes_changed[1]
        (tmp_path / "set.zip").write_bytes(changed)
        source = the_source("imagefolder", "--images", tmp_path / "set.zip")
        with pytest.raises(ValueError, match=rf"cat/a\.jpg {message if 'is' in message else 'is ' + message}"):
            _ = source.samples


def test_zip_names_of_other_systems(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("cat\\a.jpg", "dog\\b.jpg"):  # as .NET wrote them
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, 0
            archive.writestr(info, JPEG)
        info = zipfile.ZipInfo("x")
        info.filename, info.create_system = "emu\\c.jpg", 3  # on Unix a letter as any other
        archive.writestr(info, JPEG)
    source = the_source("imagefolder", "--images", tmp_path / "set.zip")
    assert [ref.name for ref in source.samples] == ["cat/a.jpg", "dog/b.jpg"]


@pytest.mark.parametrize(
    ("start", "kind"), [(b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07\x00", "RAR"), (b"\x1f\x9d", r"compress \(.Z\)")]
)
def test_other_archives_are_named(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "set.tar").write_bytes(start + bytes(600))
    with pytest.raises(ValueError, match=rf"a {kind} archive, which is not supported; unpack it and give the folder"):
        names(tmp_path / "set.tar")


def test_the_output_may_not_lie_among_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_tree(tmp_path / "set", {"train/cat/a.jpg": JPEG, "train/dog/b.jpg": JPEG})
    command = ["imagefolder", "--images", str(images), "--split-dir", "train", "--workers", "1", "--out"]
    assert main([*command, str(images / "train" / "shards")]) == 1
    assert "is among the images" in capsys.readouterr().err
    for _ in range(2):
        assert main([*command, str(images / "shards")]) == 0


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_a_finished_set_is_found_complete_without_unpacking(
    tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    images = tmp_path / f"photos.tar.{mode}"
    with tarfile.open(images, f"w:{mode}") as tar:
        tar.add(write_tree(tmp_path / "tree", {"cat/a.jpg": JPEG, "dog/b.jpg": JPEG}), ".")
    command = ["imagefolder", "--images", str(images), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 0
    assert not list(tmp_path.rglob(".out-scratch"))
    monkeypatch.setattr("tools.sources.spool._unpack", None)
    assert main(command) == 0
    assert "complete already" in caplog.text


def test_the_scratch_folder_belongs_to_one_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "photos.tar.gz"
    with tarfile.open(images, "w:gz") as tar:
        tar.add(write_tree(tmp_path / "tree", {"cat/a.jpg": JPEG, "dog/b.jpg": b"damaged"}), ".")
    first = the_source("imagefolder", "--images", images, out=tmp_path / "out")
    command = ["imagefolder", "--images", str(images), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 1
    assert "another build is unpacking its archive there" in capsys.readouterr().err
    first.close()
    assert main(command) == 1
    message = capsys.readouterr().err
    assert "dog/b.jpg" in message
    assert "the unpacked archive" in message.splitlines()[-1]
    assert main([*command, "--on-bad", "skip"]) == 0
    assert not list(tmp_path.rglob(".out-scratch"))
