"""Media on a page: a picture is inside it, a video or a sound is played from its file beside the page.

A page of pictures holds all that it shows. Videos would make it too large for a browser: they stay where they are, and
the page names them by their place relative to its own. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import os
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup
from PIL import Image

from palate import kinds
from palate.media import MediaError, type_of_path

EXACT_SIDE = 256  # up to this side pictures are stored exactly
MAX_SIDE = 1024  # larger ones are shrunk in the page; the run's folder keeps them whole
CRISP_SIDE = 128  # up to this side pixels are shown as pixels

Exhibit = Image.Image | Path  # a picture, or the file of a video or a sound


class ReportError(ValueError):
    """A run folder cannot be reported on; the message names the file."""


def of_file(path: Path) -> Exhibit:
    """A medium of a folder. Raises ReportError for a file that is missing, or is no picture though it is called one."""
    if type_of_path(path.name).startswith(("video/", "audio/")):
        if not path.is_file():
            raise ReportError(f"{path} is missing")
        return path
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ReportError(f"{path} is not a picture that can be read: {error}") from None


def html(shown: Exhibit, alt: str, beside: Path) -> Markup:
    """The element that shows it, on a page in the folder `beside`."""
    if isinstance(shown, Image.Image):
        crisp = Markup(' class="crisp"') if max(shown.size) <= CRISP_SIDE else ""
        size = Markup('width="{}" height="{}"').format(*shown.size)
        return Markup('<img src="{}" {} alt="{}"{}>').format(data_uri(shown), size, alt, crisp)
    place = quote(Path(os.path.relpath(shown, beside)).as_posix())
    if type_of_path(shown.name).startswith("audio/"):
        return Markup('<audio src="{}" controls preload="metadata" aria-label="{}"></audio>').format(place, alt)
    element = '<video src="{}" {} controls loop muted playsinline preload="metadata" aria-label="{}"></video>'
    return Markup(element).format(place, _size(shown), alt)


def _size(video: Path) -> Markup:
    """Its width and height, where its file says them, so that nothing moves when it has loaded."""
    try:
        told = kinds.measured(video)
    except MediaError:  # of another making, which the browser may play all the same
        return Markup()
    return Markup('width="{width}" height="{height}"').format(**told) if "width" in told else Markup()


def data_uri(image: Image.Image) -> str:
    """The picture inside the page: PNG as it is if small, else shrunk and as WebP."""
    image = image.convert("RGB")
    buffer = BytesIO()
    if max(image.size) <= EXACT_SIDE:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        image.save(buffer, "WEBP", quality=88)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
