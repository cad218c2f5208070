"""How fast embedders are on this machine's CPU, against plain transformers, picture by picture, in the same run."""

from __future__ import annotations

import importlib.util
import platform
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lookalike.errors import EmbedderError
from lookalike.models import parse_spec
from lookalike.settings import Settings
from workers.scale import timed

if TYPE_CHECKING:
    from workers.preparation import Picture

_PICTURES = 8


@dataclass(frozen=True, slots=True)
class Speed:
    """One embedder, one way."""

    embedder: str
    inference: str
    eager_ms: float  # CPU time per picture of 720p, preparation included, plain transformers one by one
    ms: float  # the same, as it is done here
    ratio: float
    cosine: float  # the least, of one picture's two vectors
    open_s: float  # CPU seconds to open it


def measure(specs: Sequence[str], settings: Settings, cache_dir: Path, rounds: int = 3) -> list[Speed]:
    """Each embedder by torch, and by OpenVINO where it is installed; medians of rounds in turns.

    Raises EmbedderError for one that cannot be had, and for what does not take pictures.
    """
    from workers.embedders import EagerEmbedder, open_embedder
    from workers.weights import model_folder, takes

    ways = ["torch", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    pictures = _pictures()
    found = []
    for spec in specs:
        parsed = parse_spec(spec)
        if takes(spec, model_folder(parsed, cache_dir)) != "pictures":
            raise EmbedderError(f"{spec}: only the speed of those that take pictures is measured")
        eager = EagerEmbedder(parsed, cache_dir)
        opened, opening = {}, {}
        for way in ways if settings.inference == "auto" else [settings.inference]:
            opening[way], opened[way] = timed(
                partial(open_embedder, spec, device="cpu", inference=way, cache_dir=cache_dir)
            )
        plain, plain_s = _median(partial(eager.embed, pictures), rounds)
        for way, embedder in opened.items():
            vectors, seconds = _median(partial(embedder.embed, pictures), rounds)
            found.append(
                Speed(
                    Path(spec).name if Path(spec).is_dir() else spec,
                    way,
                    plain_s / _PICTURES * 1000,
                    seconds / _PICTURES * 1000,
                    plain_s / seconds,
                    _least_cosine(plain, vectors),
                    opening[way],
                )
            )
    return found


def table(speeds: Sequence[Speed]) -> str:
    """As Markdown, with date and machine."""
    lines = [
        f"{date.today().isoformat()}, {machine()}, CPU milliseconds per 720p picture, preparation included:",
        "",
        "| model | plain transformers | by | here | times faster | least cosine | opens in |",
        "|---|--:|---|--:|--:|--:|--:|",
    ]
    for s in speeds:
        cells = (s.embedder, f"{s.eager_ms:.0f}", s.inference, f"{s.ms:.1f}", f"{s.ratio:.1f}", f"{s.cosine:.4f}")
        lines.append(f"| {' | '.join(cells)} | {s.open_s:.1f} s |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """The kind of CPU, as Linux names it; elsewhere its architecture."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    flags = re.search(r"flags\s*: (.*)", text)
    known = [flag for flag in ("avx2", "avx512_bf16", "amx_bf16") if flags and flag in flags[1].split()]
    return f"{name[1]} ({', '.join(known)})" if name else platform.machine()


def _pictures() -> list[Picture]:
    """(720, 1280, 3) each, a slope and some grain: what is in them does not matter to speed."""
    slope = np.linspace(0, 220, 1280)[None, :, None] * np.ones((720, 1, 3))
    random = np.random.default_rng(0)
    shades = [slope * random.uniform(0.3, 1, 3) for _ in range(_PICTURES)]
    return [(shade + random.integers(0, 30, (720, 1280, 3))).astype(np.uint8) for shade in shades]


def _median(work: Callable[[], NDArray[np.float32]], rounds: int) -> tuple[NDArray[np.float32], float]:
    """(result, median CPU seconds); the first round warms up and does not count."""
    result = work()
    return result, statistics.median(timed(work)[0] for _ in range(rounds))


def _least_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
