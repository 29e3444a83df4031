"""Checking encoded images before they enter a shard, and converting what the pipeline cannot decode to PNG or JPEG.

JPEG (grey, colour, CMYK with the Adobe marker) and 8-bit grey or RGB PNG are kept byte for byte: all of the pipeline's
decoders read them identically. Everything else becomes PNG. Pixels stay as stored: EXIF orientation is counted but
never applied, as in torchvision's ImageFolder.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, features
from PIL import __version__ as pillow_version

from shards.format import MAX_IMAGE_SIDE
from shards.image_formats import BadImageError, open_image

# A decoded image must fit into memory: 178 million pixels are 0.5 GB. This is Pillow's own decompression-bomb limit.
MAX_PIXELS = 178_956_970

REPAIR_QUALITY = 95  # a repaired image is re-encoded; little is lost at this quality

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"  # the last chunk's type and checksum, always the same
_EXIF_PREFIX = b"Exif\x00\x00"
_EXIF_ORIENTATION = 0x0112
_BASELINE_TO_PROGRESSIVE = range(0xC0, 0xC3)  # SOF0..SOF2: the processes that all decoders support
_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # lossless, hierarchical, arithmetic
_SEGMENT_START = struct.Struct(">BBH")  # 0xFF, marker, length without these first two bytes
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}


@dataclass(frozen=True)
class ImagePolicy:
    """How images are checked and encoded on their way into a shard.

    check: "full" entropy-decodes every image, "header" only reads dimensions and looks for the end marker.
    encode: "keep" the original bytes, or "jpeg": re-encode every image.
    max_side: with "jpeg", the maximum length of the longer side in pixels; None keeps the size.
    quality: JPEG quality for "jpeg", 1..95.
    """

    check: Literal["full", "header"] = "full"
    encode: Literal["keep", "jpeg"] = "keep"
    max_side: int | None = None
    quality: int = 90

    def __post_init__(self) -> None:
        if self.check not in ("full", "header"):
            raise ValueError(f"check {self.check!r}; expected full or header")
        if self.encode not in ("keep", "jpeg"):
            raise ValueError(f"encode {self.encode!r}; expected keep or jpeg")
        if self.max_side is not None and (self.encode == "keep" or self.max_side < 1):
            raise ValueError(
                f"max side {self.max_side} with encode {self.encode!r}; it needs jpeg and at least 1 pixel"
            )
        if not 1 <= self.quality <= 95:
            raise ValueError(f"JPEG quality {self.quality}; expected 1..95 (above, files grow without gain)")


@dataclass(frozen=True)
class CheckedImage:
    """An image as it enters the shard.

    data: its encoded bytes; extension: "jpg" or "png"; width, height: in pixels.
    stored_format: what the source held: "jpeg", "png", "webp", …
    notes: properties to count: "transcoded", "repaired", "grey", "cmyk", "exif", "exif_rotated".
    """

    data: bytes
    extension: str
    width: int
    height: int
    stored_format: str
    notes: tuple[str, ...] = ()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that determine the bytes of an encoded image: pillow, libjpeg, zlib."""
    return {
        "pillow": pillow_version,
        "libjpeg": str(features.version("libjpeg_turbo") or features.version("jpg")),
        "zlib": str(features.version("zlib")),
    }


def check_image(data: bytes, policy: ImagePolicy) -> CheckedImage:
    """Check an encoded image, and re-encode it if `policy` or its format requires it.

    Raises BadImageError if it is damaged, in an unknown format, or larger than MAX_PIXELS or 65535 pixels per side.
    """
    if not data:
        raise BadImageError("the file is empty")
    if data.startswith(_SOI):
        return _check_jpeg(data, policy)
    if data.startswith(_PNG_SIGNATURE) and _PNG_END not in data:
        raise BadImageError("PNG without its end: the file is truncated")
    with _opened(data) as image:
        stored_format = _format_of(image)
        keep = stored_format == "png" and policy.encode == "keep" and _is_plain_png(image, data)
        if not keep:
            return _encoded_again(image, policy, stored_format)
        if policy.check == "full":
            image.load()
        notes = ("grey",) if image.mode == "L" else ()
        return CheckedImage(data, "png", *image.size, stored_format, notes)


def as_rgb(data: bytes) -> NDArray[np.uint8]:
    """An image file's pixels as training sees them, uint8 (height, width, 3): the only way from a file to pixels.

    Code that feeds files to a network without a shard set decodes them here. The result is the decoded image that the
    builder would store: 16 bits are scaled, alpha is dropped, the first of several frames is used, EXIF orientation is
    not applied.

    Raises BadImageError if the builder would refuse the file.
    """
    with Image.open(io.BytesIO(check_image(data, ImagePolicy()).data)) as image:
        return np.asarray(image.convert("RGB"))


def repair_image(data: bytes, policy: ImagePolicy) -> CheckedImage:
    """Decode as much as possible of a damaged image and re-encode it; missing rows are grey.

    A truncated JPEG stays a JPEG, anything else becomes PNG. Raises BadImageError if nothing can be decoded.
    """
    with _accepting_truncation(), _opened(data) as image:
        stored_format = _format_of(image)
        if stored_format == "jpeg" and policy.encode == "keep":
            repaired = _as_jpeg(_rgb_or_grey(image), stored_format, REPAIR_QUALITY)
        else:
            repaired = _encoded_again(image, policy, stored_format)
    notes = tuple(note for note in repaired.notes if note != "transcoded")
    return CheckedImage(
        repaired.data, repaired.extension, repaired.width, repaired.height, stored_format, ("repaired", *notes)
    )


@dataclass(frozen=True)
class JpegHeader:
    """The part of a JPEG before its first scan.

    width, height: in pixels; components: 1, 3 or 4; exif: the EXIF segment, or b""; adobe: whether there is an Adobe
    segment; scan_start: byte offset of the first scan.
    """

    width: int
    height: int
    components: int
    exif: bytes
    adobe: bool
    scan_start: int


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Walk the segments of a JPEG up to its first scan (ITU-T T.81, annex B). Ten times faster than opening it.

    Raises BadImageError.
    """
    position, frame, exif, adobe = 2, None, b"", False
    while True:
        if position + _SEGMENT_START.size > len(data):
            raise _broken_header(position)
        prefix, marker, length = _SEGMENT_START.unpack_from(data, position)
        if prefix == marker == 0xFF:  # any number of fill bytes may precede a marker
            position += 1
            continue
        if prefix == 0xFF and marker in _WITHOUT_LENGTH:
            position += 2
            continue
        content, end = position + _SEGMENT_START.size, position + 2 + length
        if prefix != 0xFF or length < 2 or end > len(data):
            raise _broken_header(position)
        if marker == 0xDA:
            break
        if marker in _OTHER_FRAMES:
            raise BadImageError(
                f"JPEG process SOF{marker - 0xC0} (lossless or arithmetic) cannot be decoded everywhere"
            )
        if marker in _BASELINE_TO_PROGRESSIVE:
            frame = data[content:end]
        elif marker == 0xE1 and data.startswith(_EXIF_PREFIX, content, end):
            exif = data[content:end]
        elif marker == 0xEE and data.startswith(b"Adobe", content, end):
            adobe = True
        position = end
    if frame is None or len(frame) < 6:
        raise BadImageError("JPEG header has no frame")
    height, width = int.from_bytes(frame[1:3]), int.from_bytes(frame[3:5])
    if frame[0] != 8 or frame[5] not in (1, 3, 4):
        raise BadImageError(f"JPEG of {frame[0]} bits and {frame[5]} components; 8 bits and 1, 3 or 4 can be decoded")
    return JpegHeader(width, height, frame[5], exif, adobe, end)


def _broken_header(position: int) -> BadImageError:
    return BadImageError(f"JPEG header is broken or truncated at byte {position}")


def _check_jpeg(data: bytes, policy: ImagePolicy) -> CheckedImage:
    header = read_jpeg_header(data)
    _check_size(header.width, header.height)
    # Searched only after the header: the thumbnail in an EXIF segment has its own end marker.
    if data.rfind(_EOI, header.scan_start) < 0:
        raise BadImageError("JPEG without an end marker: the file is truncated")
    notes = {1: ("grey",), 3: (), 4: ("cmyk",)}[header.components] + _exif_notes(header.exif)
    # Without an Adobe segment it is undefined whether 0 is no ink or full ink, and decoders differ: follow Pillow.
    if policy.encode == "jpeg" or (header.components == 4 and not header.adobe):
        with _opened(data) as image:
            encoded = _encoded_again(image, policy, "jpeg")
        if policy.encode == "keep":
            notes = ("transcoded", *notes)
        return CheckedImage(encoded.data, encoded.extension, encoded.width, encoded.height, "jpeg", notes)
    if policy.check == "full":
        with _opened(data) as image:
            # All coefficients are entropy-decoded, which is what detects damage; the inverse DCT, which cannot fail,
            # runs at 1/8 scale. This takes half the time of a full-size decode.
            image.draft(None, (max(1, header.width // 8), max(1, header.height // 8)))
            image.load()
    return CheckedImage(data, "jpg", header.width, header.height, "jpeg", notes)


def _encoded_again(image: Image.Image, policy: ImagePolicy, stored_format: str) -> CheckedImage:
    if policy.encode == "jpeg":
        if policy.max_side is not None:
            scale = 2 * policy.max_side / max(image.size)  # decode at no more than twice the required size
            image.draft(None, (max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        pixels = _rgb_or_grey(image)
        if policy.max_side is not None:
            pixels.thumbnail((policy.max_side, policy.max_side), Image.Resampling.LANCZOS)
        return _as_jpeg(pixels, stored_format, policy.quality)
    pixels = _rgb_or_grey(image)
    notes = ("transcoded", "grey") if pixels.mode == "L" else ("transcoded",)
    return CheckedImage(_saved(pixels, "PNG"), "png", *pixels.size, stored_format, notes)


def _format_of(image: Image.Image) -> str:
    return "jpeg" if image.format == "MPO" else str(image.format).lower()


def _as_jpeg(pixels: Image.Image, stored_format: str, quality: int) -> CheckedImage:
    notes = ("grey",) if pixels.mode == "L" else ()
    return CheckedImage(_saved(pixels, "JPEG", quality=quality), "jpg", *pixels.size, stored_format, notes)


def _saved(pixels: Image.Image, file_format: str, **options: int) -> bytes:
    pixels.info.clear()  # otherwise colour profiles and text of the original are copied
    buffer = io.BytesIO()
    pixels.save(buffer, file_format, **options)
    return buffer.getvalue()


def _rgb_or_grey(image: Image.Image) -> Image.Image:
    """The image in 8-bit mode L or RGB, alpha dropped as by torchvision's loaders."""
    image.load()
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip it at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError("32-bit grey image; 8 or 16 bits are supported")
        return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise BadImageError("floating-point image; 8 or 16 bits are supported")
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette may have transparency, about which the direct conversion warns
    return image.convert("RGB")


def _is_plain_png(image: Image.Image, data: bytes) -> bool:
    """Whether all decoders agree on a PNG: 8 bits per channel, grey or RGB, no transparency, one frame."""
    bit_depth = data[24]  # from the header chunk; Pillow hides it: 16-bit RGB opens as "RGB"
    return (
        bit_depth == 8
        and image.mode in ("L", "RGB")
        and "transparency" not in image.info
        and not getattr(image, "is_animated", False)
    )


def _exif_notes(exif: bytes) -> tuple[str, ...]:
    if not exif:
        return ()
    parsed = Image.Exif()
    try:
        with warnings.catch_warnings(action="ignore"):
            parsed.load(exif)
            rotated = parsed.get(_EXIF_ORIENTATION, 1) not in (0, 1)
    except Exception:  # damaged EXIF does not affect decoders, and Pillow may raise anything on it
        return ("exif",)
    return ("exif", "exif_rotated") if rotated else ("exif",)


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BadImageError(f"{width} × {height} pixels")
    if max(width, height) > MAX_IMAGE_SIDE or width * height > MAX_PIXELS:
        raise BadImageError(
            f"{width} × {height} pixels; the limits are {MAX_IMAGE_SIDE} per side and {MAX_PIXELS:,} in total"
        )


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The opened image, of acceptable size. Any exception from Pillow inside the block becomes BadImageError."""
    try:
        with warnings.catch_warnings(action="ignore"), open_image(data) as image:
            _check_size(*image.size)
            yield image
    except (BadImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's parsers may raise anything on malformed files
        raise BadImageError(f"cannot be decoded: {error or type(error).__name__}") from error


@contextmanager
def _accepting_truncation() -> Iterator[None]:
    """Pillow's switch is global; builds run in single-threaded worker processes."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
