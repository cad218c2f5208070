"""From a picture file to its keyframe: itself."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path

import cv2
from PIL import Image

from lookalike.errors import MediaError
from lookalike.records import Extraction, Keyframe, VideoFacts, keyframe_id
from workers.album import JPEG_QUALITY
from workers.keyframes import KeyframeOptions
from workers.pictures import fingerprint, sharpness


def extract(path: Path, video_id: int, out: Path, options: KeyframeOptions | None = None) -> Extraction:
    """A picture as its own only keyframe, written to `out/0000000.jpg` like a video's. Raises MediaError."""
    options = options or KeyframeOptions()
    if not path.is_file():
        raise MediaError(f"{path.name} is not a regular file; name a picture")
    begun = time.thread_time()
    try:
        with Image.open(path) as header:  # reads the header only
            width, height = header.size
    except (OSError, ValueError, Image.DecompressionBombError):
        raise MediaError(f"{path.name} cannot be read as a picture; check that it opens") from None
    if width * height > options.max_pixels:
        raise MediaError(
            f"{path.name} is {width} x {height}, more than the {options.max_pixels} pixels allowed; scale it down or "
            "raise LOOKALIKE_MAX_PIXELS"
        )
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)  # turned upright as its EXIF says
    if picture is None:
        raise MediaError(f"{path.name} cannot be decoded; check that it opens")
    height, width = picture.shape[:2]
    if width > options.width_px:
        size = (options.width_px, max(1, round(height * options.width_px / width)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    out.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    part = out / "0000000.jpg.part"
    part.write_bytes(data.tobytes())
    part.replace(out / "0000000.jpg")
    sharp = sharpness(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
    return Extraction(
        VideoFacts(Fraction(1), 1, 0.0, width, height),
        (Keyframe(keyframe_id(video_id, 0), video_id, 0, 0.0, sharp, 0, 0),),
        (),
        (fingerprint(picture),),
        {"keyframes": time.thread_time() - begun},
    )
