"""From a picture of any size to what a model takes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from lookalike.errors import EmbedderError

Picture = NDArray[np.uint8]  # (h, w, 3) RGB

_FILTERS: dict[Any, str] = {Image.Resampling.NEAREST: "nearest", Image.Resampling.BICUBIC: "bicubic"}

_log = logging.getLogger(__name__)


class Preparation:
    """What the model's image processor does, faster: a 720p frame takes 0.6 ms instead of 5.

    torch's antialiased resize has Pillow's filters, to one step of 255, in vector instructions. The geometry is read
    from the processor's settings; brightness, whatever the steps, is a factor and a summand per channel, found by
    showing it black and white. Where that does not give the processor's own result on a test picture, the processor
    itself is used.

    What comes out times `scale` plus `shift`, (3,) float32 each, is what the model was trained on.
    """

    def __init__(self, name: str, processor: Any) -> None:
        self._processor = processor
        self._shortest, self._size, self._crop = _geometry(processor)
        self._filter = _FILTERS.get(getattr(processor, "resample", None), "bilinear")
        wide, tall = probe_picture(), np.ascontiguousarray(probe_picture().transpose(1, 0, 2))
        true = self._slow(wide)
        if true.shape != self._slow(tall).shape:
            raise EmbedderError(
                f"{name}: its image processor gives pictures of different sizes, {true.shape[:2]} and "
                f"{self._slow(tall).shape[:2]}; choose a model with a fixed size"
            )
        self.input_px = (int(true.shape[0]), int(true.shape[1]))
        black, white = (self._slow(np.full_like(wide, value)).mean(axis=(0, 1)) for value in (0, 255))
        self.scale, self.shift = (white - black) / 255, black
        self._exact = self._matches(wide, true) and self._matches(tall, self._slow(tall))
        if not self._exact:
            self.scale, self.shift = np.ones(3, np.float32), np.zeros(3, np.float32)
            _log.info("%s: its image processor does something of its own and is used as it is, slower", name)

    def __call__(self, picture: Picture) -> NDArray[Any]:
        """(h, w, 3): uint8, or float32 from the processor itself."""
        return self._fast(picture) if self._exact else self._slow(picture)

    def _fast(self, picture: Picture) -> Picture:
        if self._shortest:
            height, width = picture.shape[:2]
            if max(height, width) > 8 * min(height, width):  # a strip: what the crop throws away need not be resized
                side = 4 * min(height, width)
                top, left = max(0, height - side) // 2, max(0, width - side) // 2
                picture = picture[top : top + side, left : left + side]
                height, width = picture.shape[:2]
            short = min(height, width)
            size = (int(self._shortest * height / short), int(self._shortest * width / short))
        else:
            size = self._size
        pixels = _resized(picture, size, self._filter)
        if self._crop:
            top, left = (size[0] - self._crop[0]) // 2, (size[1] - self._crop[1]) // 2
            pixels = pixels[top : top + self._crop[0], left : left + self._crop[1]]
        return pixels

    def _slow(self, picture: Picture) -> NDArray[np.float32]:
        pixels = self._processor(images=[Image.fromarray(picture)], return_tensors="np")["pixel_values"][0]
        return np.asarray(pixels, np.float32).transpose(1, 2, 0)

    def _matches(self, picture: Picture, true: NDArray[np.float32]) -> bool:
        fast = self._fast(picture)
        if fast.shape != true.shape:
            return False
        # two steps of 255: rounding, and processors that scale before they resize
        return bool((np.abs(fast * self.scale + self.shift - true) <= 2 * np.abs(self.scale) + 1e-6).all())


def _resized(picture: Picture, size: tuple[int, int], kind: str) -> Picture:
    if kind == "nearest":  # torch rounds otherwise where a place lies between two pixels
        rows, columns = (_nearest(old, new) for old, new in zip(picture.shape[:2], size, strict=True))
        chosen: Picture = picture.take(rows, axis=0).take(columns, axis=1)  # 4 times quicker than by both at once
        return chosen
    pixels = torch.from_numpy(np.require(picture, requirements=["C", "W"])).permute(2, 0, 1)[None]
    resized: Picture = functional.interpolate(pixels, size, mode=kind, antialias=True)[0].permute(1, 2, 0).numpy()
    return resized


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    """Which of `old` pixels in a row each of `new` ones is, added up as Pillow does."""
    step = old / new
    return np.cumsum(np.full(new, step) - np.where(np.arange(new) == 0, step / 2, 0)).astype(np.int64)


def _geometry(processor: Any) -> tuple[int, tuple[int, int], tuple[int, int] | None]:
    """(shortest edge or 0, (height, width) otherwise, (height, width) of the central crop or None)."""
    size, crop = dict(processor.size or {}), dict(getattr(processor, "crop_size", None) or {})
    shortest = int(size.get("shortest_edge") or 0)
    fixed = (int(size.get("height") or shortest or 1), int(size.get("width") or shortest or 1))
    crop_px = (int(crop["height"]), int(crop["width"])) if processor.do_center_crop and crop.get("height") else None
    if shortest and (share := getattr(processor, "crop_pct", None)):  # ConvNeXt's own rule
        return (0, fixed, None) if shortest >= 384 else (int(shortest / share), fixed, fixed)
    return shortest, fixed, crop_px


def probe_picture() -> Picture:
    """(218, 326, 3): a slope, shapes and some grain, the same each time; neither square nor a round size."""
    y, x = np.mgrid[0:218, 0:326]
    picture = np.stack([x * 0.7, y * 1.1, 128 + 90 * np.sin(x / 17) * np.cos(y / 23)], axis=-1)
    picture[60:150, 90:180] = (210, 60, 40)
    picture[(y - 120) ** 2 + (x - 240) ** 2 < 50**2] = (30, 80, 200)
    picture += np.random.default_rng(0).normal(0, 8, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)
