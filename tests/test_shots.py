import numpy as np
import pytest

from tests.clips import BLACK, Scene, frames_of
from workers import shots


def samples_of(scenes: list[Scene]) -> np.ndarray:
    """The points that a decoder would read, from RGB: (n, 3456)."""
    rows = []
    for picture in frames_of(scenes, (128, 72)):
        rgb = picture.astype(np.float32)
        luma = rgb @ [0.257, 0.504, 0.098] + 16
        u = rgb @ [-0.148, -0.291, 0.439] + 128
        v = rgb @ [0.439, -0.368, -0.071] + 128
        rows.append(np.concatenate([luma[::2, ::2].ravel(), u[::4, ::4].ravel(), v[::4, ::4].ravel()]))
    return np.array(rows).astype(np.uint8)


def cuts_of(scenes: list[Scene], batch: int = 32) -> list[int]:
    finder, found = shots.ShotFinder(), []
    samples = samples_of(scenes)
    for begin in range(0, len(samples), batch):
        finder.push(samples[begin : begin + batch])
        settled = finder.settle()
        found += [settled.first + int(i) for i in np.flatnonzero(settled.starts)]
    settled = finder.settle(last=True)
    return found + [settled.first + int(i) for i in np.flatnonzero(settled.starts)]


@pytest.mark.parametrize("batch", [1, 7, 32, 500])
def test_finder__hard_cuts_are_found_to_the_frame_whatever_the_batch(batch):
    scenes = [Scene(40, seed=1), Scene(9, seed=2, motion=2), Scene(70, seed=3, motion=1), Scene(33, seed=4)]
    assert cuts_of(scenes, batch) == [40, 49, 119]


def test_finder__motion_is_no_cut():
    assert cuts_of([Scene(120, seed=5, motion=4)]) == []


def test_finder__a_flash_is_no_cut():
    assert cuts_of([Scene(40, seed=1), Scene(2, seed=9), Scene(40, seed=1)]) == []


def test_finder__a_dissolve_is_one_cut_near_its_middle():
    (cut,) = cuts_of([Scene(60, seed=1), Scene(80, seed=2, dissolve=20)])
    assert abs(cut - 70) <= 3


def test_finder__a_picture_that_only_gets_darker_is_no_dissolve():
    assert cuts_of([Scene(120, seed=1, fade=40)]) == []


def test_finder__black_and_blank_are_empty():
    empty = shots.is_empty(samples_of([Scene(2, seed=1), BLACK(3), Scene(2, level=255)]))
    assert empty.tolist() == [False, False, True, True, True, True, True]


def test_finder__memory_does_not_grow_with_the_film():
    finder = shots.ShotFinder()
    still = np.repeat(samples_of([Scene(1, seed=1)]), 50, axis=0)
    for _ in range(40):
        finder.push(still)
        finder.settle()
    assert finder.frame_count == 2000
    assert len(finder.change) <= 2 * shots.LAG + 50
