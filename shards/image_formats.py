"""The supported image formats, their suffixes, and the messages for all other formats.

Formats are detected by content. Not supported: EPS (starts Ghostscript), vector formats, and non-photographic formats.
"""

from __future__ import annotations

import io

from PIL import Image, features


class BadImageError(ValueError):
    """The bytes are not an image that the pipeline can decode; the message gives the reason."""


# Pillow's format names and their suffixes. A file with an unlisted suffix does not count as misnamed.
SUFFIXES_OF_FORMAT = {
    "jpeg": ("jpg", "jpeg", "jpe", "jfif", "jif", "mpo"),
    "png": ("png", "apng"),
    "webp": ("webp",),
    "bmp": ("bmp", "dib"),
    "dib": ("dib", "bmp"),
    "tiff": ("tif", "tiff"),
    "gif": ("gif",),
    "ppm": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "avif": ("avif", "avifs"),
    "heif": ("heic", "heif", "heics", "heifs", "hif"),
    "jpeg2000": ("jp2", "j2k", "jpc", "jpf", "jpx", "j2c"),
    "ico": ("ico",),
    "pcx": ("pcx",),
    "qoi": ("qoi",),
    "sgi": ("sgi", "bw", "rgb", "rgba"),
    "sun": ("ras",),
    "dds": ("dds",),
    "psd": ("psd",),
    "tga": ("tga", "icb", "vda", "vst"),
}
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffixes in SUFFIXES_OF_FORMAT.values() for suffix in suffixes)
"""The suffixes of files that are images, lower case, with their dot."""

# A TGA has no magic bytes at its start; only version 2, with a signature at its end, can be recognised.
_TGA_END = b"TRUEVISION-XFILE.\x00"

_HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_FIRST_BYTES = (
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"%PDF", "PDF"),
    (b"%!PS", "PostScript"),
    (b"version https://git-lfs", "a Git LFS pointer file"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"RIFF", "RIFF (a film or sound?)"),
    (b"<", "a web page or SVG"),
)
_PLUGIN = {
    "HEIC": "pillow-heif (the extra `heif`: pip install 'longtail[heif]')",
    "AVIF": "Pillow 11.3 or later with AVIF, or pillow-avif-plugin",
}


def is_misnamed(name: str, stored_format: str) -> bool:
    """Whether a file name's suffix contradicts the file's format ("jpeg", "png", …)."""
    suffix = "." + name.rpartition(".")[2].lower()
    return suffix in IMAGE_SUFFIXES and suffix[1:] not in SUFFIXES_OF_FORMAT.get(stored_format, ())


def open_image(data: bytes) -> Image.Image:
    """The image, with its header read.

    Raises BadImageError for an unsupported format, naming what the bytes are if that is recognised. Other exceptions
    that Pillow raises for damaged files propagate.
    """
    formats = [name.upper() for name in SUFFIXES_OF_FORMAT if name not in ("heif", "tga")]
    if data.endswith(_TGA_END):
        formats.append("TGA")
    phone = _phone_format(data)
    if phone and not _can_read(phone):
        raise BadImageError(f"{phone}, which needs {_PLUGIN[phone]}; or convert the file")
    if phone == "HEIC":
        formats = ["HEIF"]
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.UnidentifiedImageError as error:
        raise BadImageError(_not_known(data, phone)) from error


def _phone_format(data: bytes) -> str:
    """HEIC, AVIF or nothing, by the brands in the first box of an ISO base media file (ISO/IEC 14496-12)."""
    if data[4:8] != b"ftyp":
        return ""
    size = min(int.from_bytes(data[:4]), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, size - 3, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brands & _HEIF_BRANDS else ""


def _can_read(phone_format: str) -> bool:
    if phone_format == "HEIC":
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            return False
        register_heif_opener(thumbnails=False)
        return True
    if not features.check("avif"):
        try:
            import pillow_avif  # noqa: F401  # importing it registers the reader
        except ImportError:
            return False
    return True


def _not_known(data: bytes, phone_format: str) -> str:
    if phone_format:
        return f"{phone_format} that cannot be decoded; the file is damaged"
    names = ", ".join(sorted({*SUFFIXES_OF_FORMAT} - {"dib"})).upper()
    found = next((name for start, name in _FIRST_BYTES if data.lstrip().startswith(start)), "")
    return f"not an image in a supported format ({names})" + (f"; it is {found}" if found else "")
