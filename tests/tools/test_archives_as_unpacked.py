"""An archive gives the samples that its unpacked folder gives: random trees, the usual packers and unpackers."""

import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.helpers.source_commands import the_source

ENVIRONMENT = {**os.environ, "LC_ALL": "C.UTF-8"}
CLASSES = [
    "cat",
    "dog",
    "Ärger",
    "e\u0301te",
    "price_$10",
    "two words",
    "漢字",
    "-dash",
    "a'b",
    "x,y",
    "UPPER",
    "caf\udce9",
]
FILES = [
    "0.jpg",
    "1.PNG",
    "b c.webp",
    "ü.gif",
    "x.jfif",
    "note.txt",
    "no_suffix",
    "cr\udce8me.jpg",
    "#1.ppm",
    "[1].jpg",
]
TAR_FORMATS = ["gnu", "oldgnu", "pax", "ustar"]
SUFFIXES = {"": "", "-z": ".gz", "-j": ".bz2", "-J": ".xz", "--zstd": ".zst"}


def run(*command: object, cwd: Path | None = None) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, capture_output=True, env=ENVIRONMENT)


def random_tree(root: Path, random: Random, links: bool) -> None:
    """Class folders with regular, empty, sparse and hidden files at several depths; hard and symbolic links."""
    folders = [root / name for name in random.sample(CLASSES, random.randint(2, 4))]
    folders += [random.choice(folders) / name for name in random.sample(["2019", "more", ".thumbs", "@eaDir"], 2)]
    if random.random() < 0.3:
        folders = [root / "wrapper" / folder.relative_to(root) for folder in folders]
    files = []
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for name in random.sample(FILES, random.randint(1, 5)):
            files.append(folder / name)
            write_file(files[-1], random)
    if not links:
        return
    for number in range(random.randint(1, 4)):
        link, target = random.choice(folders) / f"link{number}.jpg", random.choice(files)
        kind = random.choice(["hard", "file", "file", "folder", "nowhere", "loop"])
        if kind == "hard":
            link.hardlink_to(target)
        elif kind == "file":
            link.symlink_to(os.path.relpath(target, link.parent))
        elif kind == "folder":
            (link.parent / f"folder{number}").symlink_to(os.path.relpath(target.parent, link.parent))
        elif kind == "loop":
            (link.parent / f"loop{number}").symlink_to("..")
        else:
            link.symlink_to("gone.jpg")


def write_file(path: Path, random: Random) -> None:
    kind = random.choice(["bytes", "bytes", "empty", "holes"])
    with path.open("wb") as file:
        if kind == "bytes":
            file.write(random.randbytes(random.randint(1, 3000)))
        elif kind == "holes":
            for _ in range(random.randint(0, 6)):
                file.seek(random.randrange(64) * 4096)
                file.write(random.randbytes(random.randint(1, 5000)))
            file.truncate(max(file.tell(), random.randrange(300_000)))


def pack_with_tar(tree: Path, archive: Path, random: Random) -> Path:
    compression = random.choice(list(SUFFIXES))
    archive = archive.with_name(f"{archive.name}.tar{SUFFIXES[compression]}")
    options = [f"--format={random.choice(TAR_FORMATS)}", random.choice(["--sparse", "--sparse", "--dereference"])]
    if "--dereference" in options and any(path.is_symlink() for path in tree.rglob("*")):
        options = options[:1]  # of loops there would be no end
    if options[0] == "--format=ustar":
        options = options[:1]  # has no sparse members
    what = random.choice([["."], sorted(path.name for path in tree.iterdir())])
    run("tar", *options, *([compression] if compression else []), "-cf", archive, "-C", tree, "--", *what)
    return archive


def pack_twice_with_tar(tree: Path, archive: Path, random: Random) -> Path:
    """The second time with changed files: the later of two equal names counts."""
    archive = archive.with_name(f"{archive.name}.tar")
    run("tar", "-cf", archive, "-C", tree, ".")
    for path in sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())[::2]:
        path.write_bytes(random.randbytes(100))
    run("tar", "-rf", archive, "-C", tree, ".")
    return archive


def pack_with_zip(tree: Path, archive: Path, random: Random) -> Path:
    archive = archive.with_name(f"{archive.name}.zip")
    run("zip", "-q", "-r", "-y", *random.choice([[], ["-0"], ["-9"], ["-D"], ["-UN=UTF8"]]), archive, ".", cwd=tree)
    return archive


def pack_with_tarfile(tree: Path, archive: Path, random: Random) -> Path:
    mode = random.choice(["", "gz", "bz2", "xz"])
    archive = archive.with_name(f"{archive.name}.tar{'.' + mode if mode else ''}")
    tar_format = random.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
    with tarfile.open(archive, f"w:{mode}", format=tar_format) as tar:
        tar.add(tree, random.choice([".", "", "/top"]))
    return archive


def pack_with_zipfile(tree: Path, archive: Path, random: Random) -> Path:
    archive = archive.with_name(f"{archive.name}.zip")
    with zipfile.ZipFile(archive, "w", random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as packed:
        for path in sorted(tree.rglob("*")):
            name = path.relative_to(tree).as_posix()
            if name.isprintable():  # zipfile cannot write bytes that are no UTF-8
                packed.write(path, f"{random.choice(['', './'])}{name}")
    return archive


def unpacked(archive: Path, folder: Path) -> Path:
    folder.mkdir()
    if archive.suffix == ".zip":
        run("unzip", "-q", "-o", archive, "-d", folder)
    else:
        run("tar", "-xf", archive, "-C", folder)
    return folder


def offered(images: Path, out: Path) -> object:
    """Classes, names, labels and bytes of all samples, "unreadable" for those without; or why it is refused."""
    try:
        source = the_source("imagefolder", "--images", images, "--allow-partial", out=out)
    except ValueError as error:
        return str(error).replace(str(images), "")
    found = []
    fetcher = source.open()
    for ref in source.samples:
        try:
            found.append((ref.name, ref.label, fetcher.fetch(ref)))
        except (ValueError, OSError):
            found.append((ref.name, ref.label, "unreadable"))
    fetcher.close()
    source.close()
    return source.class_names, found


PACKERS: dict[str, tuple[Callable[[Path, Path, Random], Path], bool]] = {
    "tar": (pack_with_tar, True),
    "tar, twice": (pack_twice_with_tar, True),
    "zip": (pack_with_zip, True),
    "tarfile": (pack_with_tarfile, True),
    "zipfile": (pack_with_zipfile, False),
}


@pytest.mark.skipif(not all(map(shutil.which, ("tar", "zip", "unzip", "zstd"))), reason="needs tar, zip, unzip, zstd")
@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("seed", range(4))
def test_an_archive_gives_what_its_folder_gives(packer: str, seed: int, tmp_path: Path) -> None:
    random = Random(f"{packer} {seed}")
    pack, with_links = PACKERS[packer]
    tree = tmp_path / "tree"
    tree.mkdir()
    random_tree(tree, random, with_links and random.random() < 0.6)
    archive = pack(tree, tmp_path / "set", random)
    expected = offered(unpacked(archive, tmp_path / "set-unpacked"), tmp_path / "out1")
    assert isinstance(expected, str) or expected[1]
    assert offered(archive, tmp_path / "out2") == expected
