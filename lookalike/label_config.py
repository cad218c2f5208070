"""The labeling configurations that come with Lookalike."""

from __future__ import annotations

from pathlib import Path


def shipped_config(name: str) -> str:
    """XML of `label_config/<name>.xml`, such as `video_timeline`. Raises FileNotFoundError for an unknown name."""
    here = Path(__file__).parent
    installed = here / "label_configs"
    folder = installed if installed.is_dir() else here.parent / "label_config"  # the latter in a source tree
    return (folder / f"{name}.xml").read_text(encoding="utf-8")
