import os

import av
import numpy as np

from tests.clips import Picture, Scene, frames_of
from workers.album import Album


def frame_of(seed: int, **how: float) -> av.VideoFrame:
    picture: Picture = next(iter(frames_of([Scene(1, seed=seed, **how)], (320, 180))))
    return av.VideoFrame.from_ndarray(picture, format="rgb24")


def album_of(tmp_path, share: float = 0.01) -> Album:
    return Album(tmp_path, aspect=1, width_px=1280, share=share)


def test_add__a_near_duplicate_next_to_it_adds_its_span(tmp_path):
    album = album_of(tmp_path)
    album.add(frame_of(1), 5, 0.2, 0, 99, True)
    album.add(frame_of(1), 120, 4.8, 100, 199, False)
    album.add(frame_of(2), 210, 8.4, 200, 299, True)
    album.add(frame_of(1), 310, 12.4, 300, 399, True)  # it comes back, but is no neighbour
    spans = [(d.frame_index, d.first, d.last) for d in album.publish()]
    assert spans == [(5, 0, 199), (210, 200, 299), (310, 300, 399)]


def test_publish__the_budget_takes_the_newest_of_a_long_shot_and_one_of_each_short_one(tmp_path):
    album = album_of(tmp_path)
    album.add(frame_of(1), 0, 0.0, 0, 9, True)
    for i, seed in enumerate((2, 3, 4, 5)):  # 200 frames: two keyframes
        album.add(frame_of(seed), 10 + 50 * i, 0.0, 10 + 50 * i, 59 + 50 * i, i == 0)
    chosen = album.publish()
    assert len(chosen) == 3
    assert chosen[0].last + 1 == chosen[1].first
    assert chosen[1].last + 1 == chosen[2].first
    assert (chosen[0].first, chosen[-1].last) == (0, 209)
    assert sorted(os.listdir(tmp_path)) == [f"{d.frame_index:07d}.jpg" for d in chosen]


def test_publish__a_blurred_one_leaves_its_span_to_its_shot(tmp_path):
    album = album_of(tmp_path, share=0.1)
    album.add(frame_of(1, blur_px=9), 0, 0.0, 0, 49, True)
    album.add(frame_of(2), 60, 2.4, 50, 99, False)
    (only,) = album.publish()
    assert (only.frame_index, only.first, only.last) == (60, 0, 99)
    assert np.isfinite(only.sharpness)
