"""Media of records as pictures: bytes or a path under a folder, decoded without trusting either.

Only a few decoders are ever tried, sizes are checked before pixels, and no path leaves its folder.
"""

from __future__ import annotations

import io
import re
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps, UnidentifiedImageError

from palate.records import Medium

PICTURE_FORMATS = ["PNG", "JPEG", "WEBP"]  # the only decoders that untrusted data reaches
MAX_PIXELS = 64 * 2**20
MAX_MEDIUM_BYTES = 256 * 2**20
TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".svg": "image/svg+xml",
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".txt": "text/plain",
    ".json": "application/json",
}
UNKNOWN = "application/octet-stream"


class DatasetError(ValueError):
    """A folder or row that cannot be read: names the file and row and says how to mend it."""


class MediaError(DatasetError):
    """A medium that cannot be decoded. kind: why, in one or two words, the same for all media that fail alike."""

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


def type_of_path(path: str) -> str:
    """The media type that a file's name promises; application/octet-stream if it promises none."""
    return TYPES.get(PurePosixPath(path).suffix.lower(), UNKNOWN)


def type_of_bytes(content: bytes) -> str:
    """The media type that the first bytes show; application/octet-stream if they show none."""
    head = content[:16]
    if head[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}.get(head[8:12], UNKNOWN)
    if head[4:8] == b"ftyp":
        return "video/quicktime" if head[8:12] == b"qt  " else "video/mp4"
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    return UNKNOWN


_STARTS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"\x1a\x45\xdf\xa3": "video/webm",  # Matroska, which WebM is a part of
    b"fLaC": "audio/flac",
    b"OggS": "audio/ogg",
    b"ID3": "audio/mpeg",
    b"\xff\xfb": "audio/mpeg",
    b"\xff\xf3": "audio/mpeg",
}


def medium_bytes(medium: Medium, root: str | Path | None = None) -> bytes:
    """A medium's bytes, read from under `root` if it is a path. Raises MediaError if it leaves root or is too large."""
    if medium.bytes is not None:
        return medium.bytes
    if root is None or medium.path is None:
        raise MediaError(f"medium {medium.path!r} is a path; say where it starts with root=", "no media folder")
    path = inside(root, medium.path)
    try:
        if not path.is_file():  # a pipe or a device could be read for ever
            what = "no file" if path.exists() else "missing"
            raise MediaError(f"{medium.path} cannot be read: it is {what}", what)
        if (size := path.stat().st_size) > MAX_MEDIUM_BYTES:
            raise MediaError(f"{medium.path} has {size} bytes, more than {MAX_MEDIUM_BYTES}", "too large")
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"{medium.path} cannot be read: {error.strerror}", "missing") from None


def held(medium: Medium, root: str | Path | None = None) -> Medium:
    """The medium with its bytes in it, read once. Raises MediaError as `medium_bytes` does."""
    return medium if medium.bytes is not None else Medium(medium.type, medium_bytes(medium, root))


def inside(root: str | Path, path: str) -> Path:
    """root / path, links resolved. Raises MediaError if that is not under root."""
    base = Path(root).resolve()
    if "\0" not in path and "\\" not in path and not re.match(r"[A-Za-z]:", path):
        try:
            full = (base / path).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # links in a loop, or a name that no file can have
            raise MediaError(f"media path {path!r} cannot be followed ({error})", "missing") from None
        if not Path(path).is_absolute() and full.is_relative_to(base):
            return full
    raise MediaError(
        f"media path {path!r} leaves the data's folder: paths must be relative to it and stay in it", "outside"
    )


def decode(medium: Medium, root: str | Path | None = None, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture, upright, as RGB (transparency over white). root: the folder that paths are relative to.

    Only PNG, JPEG and WebP decoders are tried, and the size is checked before any pixel is.
    Raises MediaError saying what is wrong with it.
    """
    content = medium_bytes(medium, root)
    if not medium.type.startswith("image/") and type_of_bytes(content) not in ("image/png", "image/jpeg", "image/webp"):
        raise MediaError(
            f"media of type {medium.type} cannot be decoded, only pictures (PNG, JPEG, WebP)", "no picture"
        )
    if not content:
        raise MediaError("not a picture: it is empty, zero bytes", "empty")
    try:
        with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as picture:
            if (pixels := picture.width * picture.height) > max_pixels:
                raise MediaError(f"picture has {pixels} pixels, more than {max_pixels}", "too many pixels")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
                upright = upright.convert("I").point(lambda value: value * (1 / 257)).convert("L")
            if upright.has_transparency_data:
                solid = Image.new("RGBA", upright.size, "white")
                solid.alpha_composite(upright.convert("RGBA"))
                upright = solid
            return upright.convert("RGB")
    except MediaError:
        raise
    except Exception as error:  # decoders of damaged data raise nearly anything
        if isinstance(error, UnidentifiedImageError):
            shown = type_of_bytes(content)
            found = "" if shown == UNKNOWN else f", its first bytes show {shown}"
            raise MediaError(f"not a PNG, JPEG or WebP picture{found}", "not PNG, JPEG or WebP") from None
        bomb = isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning)
        kind = "too many pixels" if bomb else "damaged"
        raise MediaError(f"not a readable PNG, JPEG or WebP picture ({type(error).__name__}: {error})", kind) from None


def check(medium: Medium, root: str | Path | None = None) -> Image.Image | None:
    """Whether a medium is what it says it is: pictures are decoded and returned, text is read, of sound and video
    only the first bytes are looked at. Raises MediaError saying what is wrong."""
    medium = held(medium, root)
    content = medium.bytes or b""
    shown = type_of_bytes(content)
    said = shown if medium.type == UNKNOWN else medium.type
    if said.startswith("image/"):
        return decode(medium)
    if said.startswith(("text/", "application/json")):
        try:
            content.decode()
        except UnicodeDecodeError:
            raise MediaError("text is not UTF-8", "damaged") from None
        return None
    if not content:
        raise MediaError("zero bytes", "empty")
    if said == UNKNOWN:
        raise MediaError("neither its name nor its first bytes show what it is", "unknown type")
    if said.split("/")[0] != shown.split("/")[0]:
        raise MediaError(f"said to be {said}, its first bytes show {shown}", "wrong type")
    return None
