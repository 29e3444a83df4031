"""Every parser of files that others wrote, fed with mutated valid files.

The default suite mutates with hypothesis (test_fuzzing.py); `python -m tests.faults.fuzz_for_long` runs one parser
under atheris, which looks for new paths through the code. What only some targets need (torch, the options of a run) is
imported by them, so that the others start within seconds and nothing else is watched.
"""

import io
import pickle
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from shards.format import BY_CLASS_FILE, DATASET_FILE, INDEX_FILE
from shards.images import ImagePolicy, check_image, repair_image
from shards.reader import ShardSet
from shards.source import SampleRef
from shards.verify import verify_shards
from tests.helpers.archives import class_folders, image_bytes, tar_bytes, zip_bytes
from tests.helpers.shard_sets import small_images
from tools.sources.archives import Container
from tools.sources.cifar import LAYOUTS, read_cifar
from tools.sources.list_files import read_listing
from tools.sources.spool import SpooledTar
from tools.sources.tars import Tar
from tools.sources.zips import Zip


@dataclass(frozen=True)
class Target:
    """A parser under test.

    valid: a file it accepts. read: given other bytes and a scratch folder, parses them; what it raises beside the
    documented errors, and every assertion in it, is a fault.
    """

    valid: bytes
    read: Callable[[bytes, Path], None]


def check(target: Target, data: bytes, scratch: Path) -> None:
    """Read mutated bytes; ValueError and FileNotFoundError are what users of the parsers are told to expect."""
    with suppress(ValueError, FileNotFoundError):
        target.read(data, scratch)


def _listing(name: str, valid: str) -> Target:
    def read(data: bytes, scratch: Path) -> None:
        (scratch / name).write_bytes(data)
        listing = read_listing(scratch / name)
        assert len(listing.names) == len(listing.labels) > 0
        assert 0 <= min(listing.labels) <= max(listing.labels) < listing.num_classes
        assert not any(image.startswith("/") or ".." in image.split("/") for image in listing.names)

    return Target(valid.encode(), read)


_LIST = "".join(f"train/n0144/{number}.JPEG {number % 3}\n" for number in range(5))
_INATURALIST = (
    '{"images": [{"id": 7, "file_name": "train_val2018/Aves/1/a.jpg"}], "annotations": [{"id": 1, "image_id": 7, '
    '"category_id": 1}], "categories": [{"id": 0, "name": "x"}, {"id": 1, "name": "y"}]}'
)
_NCL = '{"annotations": [{"image_id": 0, "fpath": "train/a.jpg", "category_id": 1}], "num_classes": 2}'


def _file_of_a_set(name: str) -> Target:
    """A file whose checksum is known: whatever differs is refused when the set is opened."""
    folder = _shard_set()

    def read(data: bytes, scratch: Path) -> None:
        opened = _open_changed(name, data, scratch)
        assert data == (folder / name).read_bytes(), "another content was opened"
        assert len(opened) == 9

    return Target((folder / name).read_bytes(), read)


def _dataset_json() -> Target:
    def read(data: bytes, scratch: Path) -> None:
        opened = _open_changed(DATASET_FILE, data, scratch)
        for sample in range(len(opened)):
            opened.check_sample(sample)
        assert np.bincount(opened.labels, minlength=opened.num_classes).tolist() == list(opened.info.samples_per_class)

    return Target((_shard_set() / DATASET_FILE).read_bytes(), read)


def _idx() -> Target:
    valid = (_shard_set() / "000000.idx").read_bytes()

    def read(data: bytes, scratch: Path) -> None:
        faults = list(verify_shards(_changed("000000.idx", data, scratch)))
        assert bool(faults) == (data != valid), faults

    return Target(valid, read)


_FOR_THE_SHARD_SET = tempfile.TemporaryDirectory()  # removed when the interpreter ends


@cache
def _shard_set() -> Path:
    folder = Path(_FOR_THE_SHARD_SET.name) / "set"
    small_images(folder, (4, 3, 2), side=32)
    return folder


def _changed(name: str, data: bytes, scratch: Path) -> Path:
    """The set with one file replaced; the others are links."""
    for path in _shard_set().iterdir():
        link = scratch / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    (scratch / name).unlink()
    (scratch / name).write_bytes(data)
    return scratch


def _open_changed(name: str, data: bytes, scratch: Path) -> ShardSet:
    return ShardSet.open(_changed(name, data, scratch))


def _archive(name: str, valid: bytes, container: Callable[[Path], Container]) -> Target:
    """A source archive: names and bytes, or a refusal; nothing is written outside of the scratch folder."""

    def read(data: bytes, scratch: Path) -> None:
        (scratch / name).write_bytes(data)
        opened = container(scratch / name)
        try:
            members = [(name, member) for name, member in opened.members() if member is not None]
            fetcher = opened.open()
            for name_in_archive, member in members:
                fetcher.will_fetch(SampleRef(name_in_archive, 0, member.location))
                with suppress(ValueError):
                    fetcher.fetch(SampleRef(name_in_archive, 0, member.location))
            fetcher.close()
        finally:
            opened.close()

    return Target(valid, read)


def _with_links() -> bytes:
    """A pax tar with a sparse member's headers, hard and symbolic links, and a link that leads nowhere."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, target in (
            ("cat/a.jpg", tarfile.REGTYPE, ""),
            ("cat/b.jpg", tarfile.LNKTYPE, "cat/a.jpg"),
            ("dog", tarfile.SYMTYPE, "cat"),
            ("emu/c.jpg", tarfile.SYMTYPE, "../dog/./b.jpg"),
            ("emu/gone.jpg", tarfile.SYMTYPE, "../../x"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
        sparse = tarfile.TarInfo("GNUSparseFile.1/d.jpg")
        sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "emu/d.jpg"}
        sparse.pax_headers |= {"GNU.sparse.size": "2000", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "1000,4"}
        sparse.size = 4
        tar.addfile(sparse, io.BytesIO(b"data"))
    return buffer.getvalue()


def _image() -> Target:
    """An image on its way into a set: what is let in has the size that is said, and its pixels can be had."""

    def read(data: bytes, scratch: Path) -> None:
        image = check_image(data, ImagePolicy())
        repair_image(data, ImagePolicy())
        with Image.open(io.BytesIO(image.data)) as opened:
            assert opened.size == (image.width, image.height)

    return Target(image_bytes(0, 0, (24, 16)), read)


def _cifar() -> Target:
    layout = LAYOUTS["cifar-10"]
    batch = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1], b"filenames": [b"a.png", b"b.png"]}
    meta = pickle.dumps({b"label_names": [b"x"] * 10})

    def read(data: bytes, scratch: Path) -> None:
        archive = scratch / "cifar-10-python.tar.gz"
        files = {f"{layout.folder}/{layout.test[0]}": data, f"{layout.folder}/{layout.meta}": meta}
        archive.write_bytes(tar_bytes(files, "w:gz"))
        images, labels, names = read_cifar(archive, layout, "test")
        assert images.dtype == np.uint8
        assert images.shape == (len(labels), 32, 32, 3)
        assert not len(labels) or 0 <= labels.min() <= labels.max() < len(names) == 10

    return Target(pickle.dumps(batch), read)


def _checkpoint() -> Target:
    import torch

    from train.checkpoints.files import load, save

    content = {"model": {"weight": torch.arange(50.0), "count": torch.tensor(3)}, "position": {"epoch": 1, "step": 2}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "valid.pt"
        save(path, content)
        valid = path.read_bytes()

    def read(data: bytes, scratch: Path) -> None:
        (scratch / "x.pt").write_bytes(data)
        found = load(scratch / "x.pt")
        assert torch.equal(found["model"]["weight"], content["model"]["weight"]), "silently other weights"
        assert found["position"] == content["position"]

    return Target(valid, read)


def _recipe() -> Target:
    from tests.helpers.runs import arguments
    from train.options import parse

    recipe = {"epochs": 3, "batch_size": 8, "method": {"name": "cmo", "loss": "bs"}, "data": {"many_min": 101}}

    def read(data: bytes, scratch: Path) -> None:
        (scratch / "recipe.yaml").write_bytes(data)
        command = arguments(scratch, scratch / "run", epochs=None, batch_size=None)
        message = io.StringIO()
        try:
            with redirect_stderr(message):
                parse(["--recipe", str(scratch / "recipe.yaml"), *command])
        except SystemExit as ended:  # how a command line is refused, with a message
            assert ended.code == 2 or isinstance(ended.code, str), ended.code
            assert "error:" in (message.getvalue() or str(ended.code))

    return Target(yaml.safe_dump(recipe).encode(), read)


_FILES = {name: data[:400] for name, data in class_folders((2, 1)).items()}

TARGETS: dict[str, Callable[[], Target]] = {
    "list": lambda: _listing("list.txt", _LIST),
    "inaturalist": lambda: _listing("list.json", _INATURALIST),
    "ncl": lambda: _listing("list.json", _NCL),
    "index": lambda: _file_of_a_set(INDEX_FILE),
    "by-class": lambda: _file_of_a_set(BY_CLASS_FILE),
    "dataset": _dataset_json,
    "idx": _idx,
    "tar": lambda: _archive("images.tar", tar_bytes(_FILES), Tar),
    "tar-gz": lambda: _archive(
        "images.tar.gz", tar_bytes(_FILES, "w:gz"), lambda path: SpooledTar(path, path.parent / "scratch")
    ),
    "zip": lambda: _archive("images.zip", zip_bytes(_FILES), Zip),
    "tar-links": lambda: _archive("images.tar", _with_links(), Tar),
    "image": _image,
    "cifar": _cifar,
    "checkpoint": _checkpoint,
    "recipe": _recipe,
}
