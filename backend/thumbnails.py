"""Pictures of keyframes for the pages: small ones, made once and kept beside the large ones.

The address has the picture's fingerprint as `?v=…`, so that browsers may keep it for ever. Where this machine did not
work on the video, Label Studio's upload of the picture is used; where there is none, a grey one.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import tempfile
from pathlib import Path

from flask import Blueprint, Response, abort, request, send_file
from flask.typing import ResponseReturnValue
from PIL import Image

from backend import access
from lookalike.errors import LabelStudioError
from lookalike.label_studio import LabelStudio
from lookalike.records import split_keyframe_id
from lookalike.settings import Settings
from lookalike.views import Sight

log = logging.getLogger("lookalike.backend")

WIDTH_PX = 320
_QUALITY = 80
_MAX_BYTES = 20_000_000
_MAX_PIXELS = 4096 * 4096
#: Pillow hands PostScript to a program that runs what the file says
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_FOR_EVER = "private, max-age=31536000, immutable"


def add_routes(routes: Blueprint) -> None:
    """GET /thumbnails/<keyframe id>.jpg, 320 px wide, and /pictures/<keyframe id>.jpg, as wide as it is kept."""

    @routes.get("/thumbnails/<int:keyframe>.jpg")
    def thumbnail(keyframe: int) -> ResponseReturnValue:
        return _answer(keyframe, small=True)

    @routes.get("/pictures/<int:keyframe>.jpg")
    def picture(keyframe: int) -> ResponseReturnValue:
        return _answer(keyframe, small=False)


def small_picture(path: Path) -> Path:
    """The small picture beside the large one, made if it is missing or no newer. Raises OSError for a broken one."""
    small = path.parent / "small" / path.name
    try:
        if small.stat().st_mtime_ns > path.stat().st_mtime_ns:  # both may be of one tick of the file system's clock
            return small
    except FileNotFoundError:
        pass
    keep(small, shrink(path.read_bytes()))
    return small


def shrink(picture: bytes) -> bytes:
    """A JPEG no wider than WIDTH_PX and no higher than that. Raises OSError for what is no picture."""
    try:
        with Image.open(io.BytesIO(picture), formats=_FORMATS) as opened:
            if opened.width * opened.height > _MAX_PIXELS:
                raise OSError(f"a picture of {opened.width} by {opened.height} pixels is too large")
            opened.draft("RGB", (WIDTH_PX, WIDTH_PX))  # decodes at a fraction of the size: 2 ms instead of 12
            image = opened.convert("RGB")
            image.thumbnail((WIDTH_PX, WIDTH_PX))
            out = io.BytesIO()
            image.save(out, "JPEG", quality=_QUALITY)
    except (ValueError, SyntaxError, IndexError, struct.error, Image.DecompressionBombError) as error:
        raise OSError(f"a picture cannot be read: {error}") from None
    return out.getvalue()


def keep(path: Path, content: bytes) -> None:
    """Whole or not at all; several may do it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(number, "wb") as file:
        file.write(content)
    Path(part).replace(path)


# --- steps ---


def _answer(keyframe: int, *, small: bool) -> ResponseReturnValue:
    here = access.access()
    sight = here.views.sight(keyframe)
    if sight is None or here.uid(access.person(), sight.label_studio_id) != sight.project:
        abort(404, f"there is no keyframe {keyframe} here")
    try:
        path = here.settings.picture_path(*split_keyframe_id(keyframe))
        if not path.exists():
            path = _fetched(here.settings, sight, keyframe)
        answer = send_file((small_picture(path) if small else path).resolve(), "image/jpeg", conditional=True)
    except (OSError, LabelStudioError) as error:
        log.warning("keyframe %d has no picture here: %s", keyframe, error)
        return Response(_NONE, mimetype="image/svg+xml", headers={"Cache-Control": "private, max-age=60"})
    fresh = request.args.get("v") == sight.version
    answer.headers["Cache-Control"] = _FOR_EVER if fresh else "private, no-cache"
    return answer


def _fetched(settings: Settings, sight: Sight, keyframe: int) -> Path:
    """The picture as it was uploaded to Label Studio, kept here. Raises OSError where there is none."""
    video, frame = split_keyframe_id(keyframe)
    path = settings.data_dir / "fetched" / f"{video:09d}" / f"{frame:07d}-{sight.version}.jpg"
    if path.exists():
        return path
    if not sight.image or not settings.label_studio_url or not settings.label_studio_token:
        raise OSError("another machine has worked on its video, and it was not uploaded to Label Studio")
    with (
        LabelStudio(settings.label_studio_url, settings.label_studio_token, timeout=10, tries=1) as studio,
        studio.open_media(sight.image) as found,
    ):
        content = found.raw.read(_MAX_BYTES + 1) if found.status_code == 200 else b""
    if not 0 < len(content) <= _MAX_BYTES:
        raise OSError(f"Label Studio gave no picture for {sight.image}")
    shrink(content)  # nothing is kept that is no picture
    keep(path, content)
    return path


_NONE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 200"><rect width="320" height="200" fill="#8883"/>'
    '<path d="M120 130l28-36 20 24 14-16 26 28z" fill="#8888"/><circle cx="186" cy="78" r="9" fill="#8888"/></svg>'
)
