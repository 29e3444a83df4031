"""Sources that come as pixel arrays: CIFAR from its pickles, and scikit-learn's digits."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.class_counts import samples_per_class
from tests.helpers.archives import cifar_pixels, tar_bytes, write_cifar
from tests.helpers.source_commands import contents, sources_of, the_source
from tools.sources.subsets import cmo_subset, glmc_subset, long_tailed_counts, metasaug_split

ROOT = "cifar-10-batches-py"


@pytest.fixture(scope="module", params=[10, 100])
def cifar(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, np.ndarray, list[int]]:
    """Path, number of classes, training pixels uint8 (N, 32, 32, 3), training labels."""
    classes, train = request.param, request.param * 20
    path = write_cifar(tmp_path_factory.mktemp("cifar"), classes, train, test=classes)
    parts = [(train // 5, i * 1000) for i in range(5)] if classes == 10 else [(train, 0)]
    drawn = [cifar_pixels(classes, *part) for part in parts]
    labels = [label for _, of_part in drawn for label in of_part]
    return path, classes, np.concatenate([pixels for pixels, _ in drawn]), labels


def decoded(source: Any) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(data))) for _, _, data in contents(source)]


def test_every_pixel_survives_and_the_whole_set_is_the_factor_one(
    cifar: tuple[Path, int, np.ndarray, list[int]],
) -> None:
    path, classes, pixels, labels = cifar
    source = the_source("cifar-lt", "--archive", path, "--imb-factor", 1, "--allow-partial")
    assert samples_per_class([ref.label for ref in source.samples], classes).tolist() == [20] * classes
    for ref, image in zip(source.samples, decoded(source), strict=True):
        original = int(ref.name.rpartition("/")[2])
        assert ref.label == labels[original]
        np.testing.assert_array_equal(image, pixels[original])
    assert source.class_names == [f"name_{k}" for k in range(classes)]


@pytest.mark.parametrize(("subset", "rule"), [("cmo", cmo_subset), ("glmc", glmc_subset)])
@pytest.mark.parametrize("imb_type", ["exp", "step"])
def test_the_subset_is_the_papers(
    cifar: tuple[Path, int, np.ndarray, list[int]], subset: str, rule: Any, imb_type: str
) -> None:
    path, classes, _, labels = cifar
    arguments = ("--imb-factor", 0.1, "--imb-type", imb_type, "--subset", subset, "--allow-partial")
    source = the_source("cifar-lt", "--archive", path, *arguments)
    chosen = [int(ref.name.rpartition("/")[2]) for ref in source.samples]
    assert chosen == rule(labels, long_tailed_counts(20, classes, 0.1, imb_type)).tolist()
    assert source.name == f"cifar-{classes}-lt"


def test_the_meta_set_is_balanced_and_no_part_of_the_training_set(
    cifar: tuple[Path, int, np.ndarray, list[int]],
) -> None:
    path, classes, _, labels = cifar
    sources = sources_of("cifar-lt", "--archive", path, "--imb-factor", 0.2, "--subset", "metasaug", "--allow-partial")
    assert list(sources) == ["", "-meta"]
    counts = long_tailed_counts(10, classes, 0.2)  # 20 images per class, 10 of them in the meta set
    chosen = [[int(ref.name.rpartition("/")[2]) for ref in source.samples] for source in sources.values()]
    assert chosen == [indices.tolist() for indices in metasaug_split(labels, counts)]
    assert not set(chosen[0]) & set(chosen[1])
    assert samples_per_class([ref.label for ref in sources["-meta"].samples], classes).tolist() == [10] * classes
    assert sources[""].options != sources["-meta"].options


def test_the_test_split_is_never_cut(cifar: tuple[Path, int, np.ndarray, list[int]]) -> None:
    path, classes, _, _ = cifar
    source = the_source("cifar-lt", "--archive", path, "--split", "test", "--allow-partial")
    assert samples_per_class([ref.label for ref in source.samples], classes).tolist() == [1] * classes
    np.testing.assert_array_equal(np.stack(decoded(source)), cifar_pixels(classes, classes, 9000)[0])


def test_the_same_pixels_give_the_same_bytes_in_another_process(
    cifar: tuple[Path, int, np.ndarray, list[int]],
) -> None:
    source = the_source("cifar-lt", "--archive", cifar[0], "--imb-factor", 0.1, "--allow-partial")
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_another_number_of_images_is_refused_with_both(cifar: tuple[Path, int, np.ndarray, list[int]]) -> None:
    with pytest.raises(ValueError, match=rf"{20 * cifar[1]} train images, the original has 50000"):
        the_source("cifar-lt", "--archive", cifar[0])


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


def batch(**changes: Any) -> dict[bytes, Any]:
    return {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 1]} | {k.encode(): v for k, v in changes.items()}


# An array made by calling numpy's class, and the state given to it. With numpy's own classes the first below takes
# 100 GB and the second ends the process.
CALLED = b"}(C\x04datacnumpy\nndarray\n%sR%sbu."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(batch(extra=Harmful())), r"it asks for posix\.mkdir, .* do not trust this file"),
        (pickle.dumps(batch(data=np.array([Harmful()], object))), r"it asks for posix\.mkdir"),
        (pickle.dumps(batch())[:-20], "cannot be unpickled"),
        (b"", "cannot be unpickled"),
        (b"\x96" + (1 << 40).to_bytes(8, "little") + b".", "cannot be unpickled"),  # a bytearray of a terabyte
        (pickle.dumps([1, 2]), r"no uint8 array \(N, 3072\)"),
        (pickle.dumps(batch(data=np.zeros((2, 3072)))), r"no uint8 array \(N, 3072\)"),
        (pickle.dumps(batch(data=np.zeros((2, 1024), np.uint8))), r"no uint8 array \(N, 3072\)"),
        (CALLED % (b"(I99999999999\nt", b"N"), "cannot be unpickled"),
        (CALLED % (b"(t", b"(I1\n(I99999999\ntcnumpy\ndtype\n(VO\ntRI00\n(lt"), r"no uint8 array \(N, 3072\)"),
        (CALLED % (b"(t", b"(I1\n(I2\nI3072\ntcnumpy\ndtype\n(Vu1\ntRI00\nC\x01xt"), r"no uint8 array"),
        (pickle.dumps(batch(labels=[0])), "no list of 2 class numbers under 'labels'"),
        (pickle.dumps(batch(labels=[0, None])), "no list of 2 class numbers"),
        (pickle.dumps(batch(labels=[0, 10])), "sample 1 has label 10, expected 0 to 9"),
    ],
)
def test_a_batch_with_anything_else_in_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    meta = pickle.dumps({b"label_names": [b"x"] * 10})
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(tar_bytes({f"{ROOT}/test_batch": content, f"{ROOT}/batches.meta": meta}, "w:gz"))
    with pytest.raises(ValueError, match=rf"test_batch: .*{message}"):
        the_source("cifar-lt", "--archive", archive, "--split", "test", "--allow-partial")
    assert not (tmp_path / "pwned").exists()


def test_pickles_of_the_original_python_2_are_read(tmp_path: Path) -> None:
    # Protocol 2 with byte strings, as Python 2 wrote the archives: {'label_names': ['a', …]}.
    names = b"".join(b"U\x01" + bytes([97 + k]) for k in range(10))
    meta = b"\x80\x02}U\x0blabel_names](" + names + b"es."
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01K\x01M\x00\x0c\x86" + dtype + b"\x89T\x00\x0c\x00\x00" + bytes(range(256)) * 12 + b"tb"
    content = b"\x80\x02}(U\x04data" + array + state + b"U\x06labels]K\x03au."
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(tar_bytes({f"{ROOT}/test_batch": content, f"{ROOT}/batches.meta": meta}, "w:gz"))
    source = the_source("cifar-lt", "--archive", archive, "--split", "test", "--allow-partial")
    assert source.class_names == list("abcdefghij")
    assert [ref.label for ref in source.samples] == [3]
    red, green = decoded(source)[0][..., 0], decoded(source)[0][..., 1]
    np.testing.assert_array_equal(red.ravel(), np.arange(1024) % 256)
    np.testing.assert_array_equal(green, red)


def test_wrong_archives_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        the_source("cifar-lt", "--archive", tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(ValueError, match="the file name tells CIFAR-10 from CIFAR-100"):
        the_source("cifar-lt", "--archive", tmp_path / "cifar.tar.gz")
    archive = tmp_path / "cifar-100-python.tar.gz"
    archive.write_bytes(write_cifar(tmp_path, 10).read_bytes())
    with pytest.raises(ValueError, match=r"cifar-100-python/train, cifar-100-python/meta not inside"):
        the_source("cifar-lt", "--archive", archive)
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"not a complete tar\.gz"):
        the_source("cifar-lt", "--archive", archive)


def test_digits_train_and_test_are_fixed_disjoint_and_complete() -> None:
    train, test = the_source("digits-lt"), the_source("digits-lt", "--split", "test")
    assert samples_per_class([ref.label for ref in train.samples], 10).tolist() == [134, 86, 56, 36, 23, 15, 9, 6, 4, 2]
    assert samples_per_class([ref.label for ref in test.samples], 10).tolist() == [40] * 10
    assert not {ref.name for ref in train.samples} & {ref.name for ref in test.samples}
    gentler = the_source("digits-lt", "--imb-factor", 0.5)
    assert not {ref.name for ref in gentler.samples} & {ref.name for ref in test.samples}
    assert contents(train) == contents(the_source("digits-lt"))


def test_digits_are_the_grey_images_enlarged() -> None:
    from sklearn.datasets import load_digits

    originals = load_digits().images
    test = the_source("digits-lt", "--split", "test")
    # Bilinear: pixel centres of the large image lie at (i + 0.5) / 4 − 0.5 of the small one, clamped at the edge.
    centres = ((np.arange(32) + 0.5) / 4 - 0.5).clip(0, 7)
    across = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(8)))
    for ref, image in zip(test.samples[:20], decoded(test)[:20], strict=True):
        assert image.shape == (32, 32, 3)
        assert (image == image[..., :1]).all()
        levels = np.rint(originals[int(ref.name.rpartition("/")[2])] * 255 / 16)
        assert np.abs(image[..., 0] - across @ levels @ across.T).max() <= 1
