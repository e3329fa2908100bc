"""Media of records as pictures: bytes or a path under a folder, decoded without trusting either.

Only a few decoders are ever tried, sizes are checked before pixels, and no path leaves its folder.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image, ImageOps

from palate.records import Medium

PICTURE_FORMATS = ["PNG", "JPEG", "WEBP"]  # the only decoders that untrusted data reaches
MAX_PIXELS = 64 * 2**20
MAX_MEDIUM_BYTES = 256 * 2**20


class DatasetError(ValueError):
    """A folder or row that cannot be read: names the file and row and says how to mend it."""


class MediaError(DatasetError):
    """A medium that cannot be decoded."""


def medium_bytes(medium: Medium, root: str | Path | None = None) -> bytes:
    """A medium's bytes, read from under `root` if it is a path. Raises MediaError if it leaves root or is too large."""
    if medium.bytes is not None:
        return medium.bytes
    if root is None or medium.path is None:
        raise MediaError(f"medium {medium.path!r} is a path; say where it starts with root=")
    path = inside(root, medium.path)
    try:
        if (size := path.stat().st_size) > MAX_MEDIUM_BYTES:
            raise MediaError(f"{medium.path} has {size} bytes, more than {MAX_MEDIUM_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"{medium.path} cannot be read: {error.strerror}") from None


def inside(root: str | Path, path: str) -> Path:
    """root / path, links resolved. Raises MediaError if that is not under root."""
    base = Path(root).resolve()
    if "\0" not in path and "\\" not in path and not re.match(r"[A-Za-z]:", path):
        full = (base / path).resolve()
        if not Path(path).is_absolute() and full.is_relative_to(base):
            return full
    raise MediaError(f"media path {path!r} leaves the data's folder: paths must be relative to it and stay in it")


def decode(medium: Medium, root: str | Path | None = None, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture, upright, as RGB (transparency over white). root: the folder that paths are relative to.

    Only PNG, JPEG and WebP decoders are tried, and the size is checked before any pixel is.
    Raises MediaError saying what is wrong with it.
    """
    content = medium_bytes(medium, root)
    if not medium.type.startswith("image/"):
        raise MediaError(f"media of type {medium.type} cannot be decoded, only pictures (PNG, JPEG, WebP)")
    try:
        with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as picture:
            if (pixels := picture.width * picture.height) > max_pixels:
                raise MediaError(f"picture has {pixels} pixels, more than {max_pixels}")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            if upright.has_transparency_data:
                solid = Image.new("RGBA", upright.size, "white")
                solid.alpha_composite(upright.convert("RGBA"))
                upright = solid
            return upright.convert("RGB")
    except MediaError:
        raise
    except Exception as error:  # decoders of damaged data raise nearly anything
        raise MediaError(f"not a readable PNG, JPEG or WebP picture ({type(error).__name__}: {error})") from None
