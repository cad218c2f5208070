"""The recipe of the article that Lookalike grew out of, as one would write it today: what we measure ourselves against.

PySceneDetect's ContentDetector with its default settings, the middle frame of each scene by an OpenCV seek, Pillow, one
call of transformers' processor and model per picture, StandardScaler and KMeans, the picture nearest each centroid.

    python benchmarks/article.py MODEL_FOLDER CLUSTERS CLIP...
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scenedetect import ContentDetector, detect
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin
from sklearn.preprocessing import StandardScaler
from transformers import AutoImageProcessor, AutoModel


def run(clips: list[Path], model_folder: Path, clusters: int) -> dict[str, Any]:
    """The whole job on some clips.

    Gives `seconds`: {stage: {"cpu", "wall"}} with their sum as `all`, and the counts `clips`, `keyframes`, `clusters`.
    Loading the model is a stage of its own, outside `all`: a service does it once.
    """
    clock = _Clock()
    with clock.stage("load"):
        processor, model = load(model_folder)
    pictures: list[Image.Image] = []
    for clip in clips:
        with clock.stage("scenes"):
            # start_in_scene: a clip without a cut is one scene
            scenes = detect(str(clip), ContentDetector(), start_in_scene=True)
        with clock.stage("frames"):
            pictures += _middle_frames(clip, [(first.frame_num + end.frame_num) // 2 for first, end in scenes])
    with clock.stage("embed"):
        vectors = embed(pictures, processor, model)
    centroids: NDArray[np.int64] = np.empty(0, np.int64)
    if vectors:
        with clock.stage("cluster"):
            points = StandardScaler().fit_transform(np.stack(vectors))
            kmeans = KMeans(min(clusters, len(points)), random_state=0).fit(points)
            centroids = pairwise_distances_argmin(kmeans.cluster_centers_, points)
    return {
        "seconds": clock.seconds(),
        "clips": len(clips),
        "keyframes": len(pictures),
        "clusters": len(centroids),
    }


def load(model_folder: Path) -> tuple[Any, Any]:
    """(image processor, model)"""
    processor = AutoImageProcessor.from_pretrained(model_folder, local_files_only=True)
    return processor, AutoModel.from_pretrained(model_folder, local_files_only=True).eval()


def embed(pictures: list[Image.Image], processor: Any, model: Any) -> list[NDArray[np.float32]]:
    """One call per picture, eager."""
    with torch.no_grad():
        return [model(**processor(images=p, return_tensors="pt")).pooler_output[0].numpy() for p in pictures]


def _middle_frames(clip: Path, frame_indices: list[int]) -> list[Image.Image]:
    capture = cv2.VideoCapture(str(clip))
    pictures = []
    for frame_index in frame_indices:
        capture.set(cv2.CAP_PROP_POS_FRAMES, frame_index)
        ok, frame = capture.read()
        if ok:
            pictures.append(Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)))
    capture.release()
    return pictures


class _Clock:
    """CPU seconds (of all threads) and wall seconds per stage, added up."""

    def __init__(self) -> None:
        self._stages: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        spent = self._stages.setdefault(name, {"cpu": 0.0, "wall": 0.0})
        spent["cpu"] += time.process_time() - cpu
        spent["wall"] += time.perf_counter() - wall

    def seconds(self) -> dict[str, dict[str, float]]:
        work = [spent for name, spent in self._stages.items() if name != "load"]
        return {**self._stages, "all": {kind: sum(spent[kind] for spent in work) for kind in ("cpu", "wall")}}


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    print(json.dumps(run([Path(clip) for clip in sys.argv[3:]], Path(sys.argv[1]), int(sys.argv[2])), indent=2))
