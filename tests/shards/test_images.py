"""What enters a shard can be decoded: real formats are found, damage is named, the rest becomes PNG."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.image_formats import IMAGE_SUFFIXES, BadImageError, is_misnamed
from shards.images import ImagePolicy, as_rgb, check_image, read_jpeg_header, repair_image
from tests.helpers.making import picture

KEEP, HEADER = ImagePolicy(), ImagePolicy(check="header")
JPEG, PNG = picture(0), picture(0, file_format="PNG")


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def smooth(mode: str = "RGB", width: int = 40, height: int = 32) -> Image.Image:
    return Image.open(io.BytesIO(picture(1, width, height, file_format="PNG"))).convert(mode)


@pytest.mark.parametrize("policy", [KEEP, HEADER])
@pytest.mark.parametrize(
    ("data", "extension", "notes"),
    [
        (JPEG, "jpg", ()),
        (picture(2, mode="L"), "jpg", ("grey",)),
        (picture(2, mode="CMYK"), "jpg", ("cmyk",)),
        (encoded(smooth(), "JPEG", progressive=True), "jpg", ()),
        (JPEG + b"junk behind the end", "jpg", ()),
        (PNG, "png", ()),
        (picture(2, mode="L", file_format="PNG"), "png", ("grey",)),
    ],
)
def test_plain_images_keep_their_bytes(policy: ImagePolicy, data: bytes, extension: str, notes: tuple[str]) -> None:
    image = check_image(data, policy)
    assert image.data is data
    assert (image.extension, image.width, image.height, image.notes) == (extension, 40, 32, notes)


@pytest.mark.parametrize(("orientation", "notes"), [(1, ("exif",)), (6, ("exif", "exif_rotated"))])
def test_exif_is_noted_and_not_applied(orientation: int, notes: tuple[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = check_image(encoded(smooth(), "JPEG", exif=exif.tobytes()), KEEP)
    assert (image.notes, image.width, image.height) == (notes, 40, 32)


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (encoded(smooth("RGBA"), "PNG"), "png"),
        (encoded(smooth("P"), "PNG"), "png"),
        (encoded(smooth("LA"), "PNG"), "png"),
        (encoded(smooth("1"), "PNG"), "png"),
        (encoded(smooth("P"), "PNG", transparency=3), "png"),
        (encoded(smooth(), "PNG", transparency=(1, 2, 3)), "png"),
        (encoded(smooth(), "PNG", save_all=True, append_images=[smooth("RGB").rotate(90)]), "png"),
        (encoded(smooth(), "WEBP", lossless=True), "webp"),
        (encoded(smooth(), "BMP"), "bmp"),
        (encoded(smooth("CMYK"), "TIFF"), "tiff"),
        (encoded(smooth("P"), "GIF"), "gif"),
        (encoded(smooth(), "PPM"), "ppm"),
    ],
)
def test_other_images_become_png_with_torchvisions_pixels(data: bytes, stored: str) -> None:
    image = check_image(data, KEEP)
    assert (image.extension, image.stored_format) == ("png", stored)
    assert "transcoded" in image.notes
    assert pixels(image.data).shape[:2] == (image.height, image.width) == (32, 40)
    assert check_image(image.data, KEEP).data is image.data
    with Image.open(io.BytesIO(data)) as original, Image.open(io.BytesIO(image.data)) as now:
        assert np.array_equal(np.asarray(now.convert("RGB")), np.asarray(original.convert("RGB")))


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 40 * 32).astype(np.uint16).reshape(32, 40)
    image = check_image(encoded(Image.fromarray(values), "PNG"), KEEP)
    assert np.array_equal(pixels(image.data), np.round(values / 65535 * 255).astype(np.uint8))
    assert image.notes == ("transcoded", "grey")


def test_16_bit_rgb_is_transcoded() -> None:
    rows = b"".join(b"\x00" + bytes([200, 1] * 6) for _ in range(2))
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    image = check_image(data, KEEP)
    assert "transcoded" in image.notes
    assert (pixels(image.data) == 200).all()


def bomb(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 5] + struct.pack(">HH", height, width) + JPEG[at + 9 :]


@pytest.mark.parametrize("policy", [KEEP, HEADER])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am a text", "not an image in a supported format"),
        (JPEG[:-2], "without an end marker"),
        (JPEG[:-30], "without an end marker"),
        (JPEG[:100], "broken or truncated"),
        (JPEG[:2], "broken or truncated at byte 2"),
        (JPEG[:2] + bytes(20) + JPEG[22:], "broken or truncated at byte 2"),
        (JPEG.replace(b"\xff\xc0", b"\xff\xc9"), "SOF9"),
        (PNG[:-20], "PNG without its end"),
        (picture(1, file_format="WEBP")[:60], "cannot be decoded|known format"),
        (bomb(40_000, 40_000), "the limits are 65535 per side and 178,956,970 in total"),
        (bomb(0, 10), "0 × 10 pixels"),
        (encoded(Image.new("1", (70_000, 1)), "PNG"), "70000 × 1 pixels; the limits"),
        (encoded(smooth("F"), "TIFF"), "floating-point"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a supported format"),
    ],
)
def test_bad_images_are_refused_with_the_reason(policy: ImagePolicy, data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        check_image(data, policy)


def test_full_check_finds_what_the_header_check_cannot() -> None:
    middle = len(PNG) // 2
    damaged = PNG[:middle] + bytes(30) + PNG[middle + 30 :]
    check_image(damaged, HEADER)
    with pytest.raises(BadImageError, match="cannot be decoded"):
        check_image(damaged, KEEP)


def test_a_thumbnails_end_marker_does_not_hide_a_cut() -> None:
    exif = Image.Exif()
    exif[0x9286] = JPEG  # a user comment that holds a whole JPEG
    data = encoded(smooth(), "JPEG", exif=exif.tobytes())
    cut = data[: data.index(b"\xff\xda", data.rindex(b"\xff\xc4")) + 40]
    assert b"\xff\xd9" in cut
    with pytest.raises(BadImageError, match="end marker"):
        check_image(cut, HEADER)


def test_repair_keeps_what_is_there_of_a_cut_jpeg() -> None:
    data = picture(5, 320, 320)
    repaired = repair_image(data[: len(data) * 2 // 3], KEEP)
    assert (repaired.extension, repaired.width, repaired.height, repaired.notes) == ("jpg", 320, 320, ("repaired",))
    assert check_image(repaired.data, KEEP).data is repaired.data
    difference = np.abs(pixels(repaired.data)[:96].astype(int) - pixels(data)[:96].astype(int))
    assert difference.mean() < 3  # the upper third, encoded a second time
    with pytest.raises(BadImageError, match="end marker"):  # the switch of Pillow is back
        check_image(data[:-2], KEEP)


def test_repair_gives_up_where_nothing_can_be_decoded() -> None:
    with pytest.raises(BadImageError):
        repair_image(b"no image", KEEP)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA"])
@pytest.mark.parametrize(("size", "expected"), [((900, 300), (120, 40)), ((50, 100), (50, 100))])
def test_encoding_again_shrinks_the_longer_side(mode: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    data = encoded(smooth(mode, *size), "PNG" if mode == "RGBA" else "JPEG")
    image = check_image(data, ImagePolicy(encode="jpeg", max_side=120, quality=92))
    assert (image.width, image.height) == expected == pixels(image.data).shape[1::-1]
    assert (image.extension, image.data[:2]) == ("jpg", b"\xff\xd8")
    wanted = np.asarray(smooth(mode, *size).convert("RGB").resize(expected, Image.Resampling.LANCZOS)).astype(int)
    with Image.open(io.BytesIO(image.data)) as now:
        assert np.abs(np.asarray(now.convert("RGB")) - wanted).mean() < 6


@pytest.mark.parametrize(
    "wrong",
    [{"check": "no"}, {"encode": "webp"}, {"max_side": 10}, {"encode": "jpeg", "max_side": 0}, {"quality": 100}],
)
def test_contradictory_policies_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"expected|needs"):
        ImagePolicy(**wrong)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_images_are_checked_or_refused(data: st.DataObject) -> None:
    original = data.draw(st.sampled_from([JPEG, PNG, picture(1, file_format="WEBP"), picture(1, file_format="TIFF")]))
    start = data.draw(st.integers(0, len(original)))
    end = data.draw(st.integers(start, min(len(original), start + 50)))
    mutated = original[:start] + data.draw(st.binary(max_size=12)) + original[end:]
    for check in (lambda: check_image(mutated, KEEP), lambda: repair_image(mutated, KEEP)):
        try:
            image = check()
        except BadImageError:
            continue
        with Image.open(io.BytesIO(image.data)) as opened:
            assert opened.size == (image.width, image.height)


def test_header_of_a_jpeg_agrees_with_pillow() -> None:
    for mode, components in (("L", 1), ("RGB", 3), ("CMYK", 4)):
        header = read_jpeg_header(picture(3, 57, 33, mode))
        assert (header.width, header.height, header.components) == (57, 33, components)


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (40, 7), (1, 5000), (3, 3)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpegs_with_a_tiny_side_enter(size: tuple[int, int], options: dict) -> None:
    data = encoded(smooth("RGB", *size), "JPEG", **options)
    assert check_image(data, KEEP).data is data
    small = check_image(data, ImagePolicy(encode="jpeg", max_side=4))
    assert max(small.width, small.height) == min(4, max(size))
    assert min(small.width, small.height) >= 1


def test_cmyk_that_no_adobe_segment_explains_is_kept_as_pillow_reads_it() -> None:
    data = picture(3, mode="CMYK")
    at = data.index(b"\xff\xee")
    data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]
    image = check_image(data, KEEP)
    assert (image.extension, image.stored_format, image.notes) == ("png", "jpeg", ("transcoded", "cmyk"))
    with Image.open(io.BytesIO(data)) as original:
        assert np.array_equal(pixels(image.data), np.asarray(original.convert("RGB")))


@pytest.mark.parametrize(
    ("data", "stored"),
    [
        (encoded(smooth(), "AVIF"), "avif"),
        (encoded(smooth(), "JPEG2000"), "jpeg2000"),
        (encoded(smooth(), "TGA"), "tga"),
        (encoded(smooth(), "PCX"), "pcx"),
        (encoded(smooth(), "SGI"), "sgi"),
        (encoded(smooth(), "ICO", sizes=[(40, 32)]), "ico"),
        (encoded(smooth("1"), "PPM"), "ppm"),
    ],
)
def test_rarer_formats_are_read(data: bytes, stored: str) -> None:
    image = check_image(data, KEEP)
    assert (image.stored_format, image.extension, image.width, image.height) == (stored, "png", 40, 32)


def test_heic_is_read_where_its_plug_in_is_installed() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    data = encoded(smooth(), "HEIF", quality=95)
    image = check_image(data, KEEP)
    assert (image.stored_format, image.extension) == ("heif", "png")
    assert np.abs(pixels(image.data).astype(int) - np.asarray(smooth()).astype(int)).mean() < 6


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90), "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(90), "AVIF"),
        (b"\xff\x0a" + bytes(90), "it is JPEG XL"),
        (b"  <html>not found</html>", "it is a web page or SVG"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ],
)
def test_what_cannot_be_read_is_called_by_its_name(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        check_image(data, KEEP)


def test_absent_plug_ins_are_named_with_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_avif", None)
    monkeypatch.setattr("shards.image_formats.features.check", lambda name: False)
    with pytest.raises(BadImageError, match=r"HEIC, which needs pillow-heif .*longtail\[heif\]"):
        check_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90), KEEP)
    with pytest.raises(BadImageError, match=r"AVIF, which needs Pillow 11\.3 or later"):
        check_image(b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(90), KEEP)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["L", "LA", "P", "RGB", "RGBA", "CMYK", "1", "I;16"]), st.integers(1, 9), st.integers(1, 9))
def test_pixels_of_a_file_are_those_of_the_set(mode: str, width: int, height: int) -> None:
    image = Image.new("I;16", (width, height), 40_000) if mode == "I;16" else smooth(mode, width, height)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    with Image.open(io.BytesIO(check_image(data, KEEP).data)) as in_the_set:
        expected = np.asarray(in_the_set.convert("RGB"))
    assert np.array_equal(as_rgb(data), expected)
    assert as_rgb(data).shape == (height, width, 3)
    if mode == "I;16":
        assert (as_rgb(data) == round(40_000 / 65535 * 255)).all()


def test_suffixes_say_what_files_should_hold() -> None:
    assert {".jpg", ".jfif", ".ppm", ".gif", ".heic", ".avif"} <= IMAGE_SUFFIXES
    assert is_misnamed("a/b.JPG", "avif")
    assert not is_misnamed("a/b.JPEG", "jpeg")
    assert not is_misnamed("a/b", "png")
    assert not is_misnamed("a/b.jpg.1", "png")
