"""The words that go with a file: subtitles or a caption beside it, else its name.

`clip.srt` or `clip.vtt` beside `clip.mp4` says what is said when; `clip.txt` says what it shows. What is not there is
made up for by the file's name: `red_fox-03.mp4` is "red fox 03".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

_TIMES = re.compile(r"((?:\d+:)?\d+:\d+[.,]\d+)\s*-->\s*((?:\d+:)?\d+:\d+[.,]\d+)")
_MARKUP = re.compile(r"<[^>]*>|\{[^}]*\}")


@dataclass(frozen=True, slots=True)
class Captions:
    """What is said when; `otherwise` where nothing is."""

    lines: tuple[tuple[float, float, str], ...]  # (from, to, words), seconds
    otherwise: str

    def at(self, first_s: float, last_s: float) -> str:
        """What is said between these two."""
        said = [words for begin, end, words in self.lines if begin <= last_s and end >= first_s]
        return " ".join(said) or self.otherwise


def read_captions(name: str, path: Path | None = None) -> Captions:
    """The words of a file by its name, which may be an address, and by what lies beside it where it lies itself."""
    stem = PurePosixPath(unquote(name.partition("?")[0] if "://" in name else name)).stem
    name = re.sub(r"[\W_]+", " ", stem).strip() or stem
    if path is None:
        return Captions((), name)
    text = _read(path.with_suffix(".txt")).strip()
    for suffix in (".srt", ".vtt"):
        if lines := _lines(_read(path.with_suffix(suffix))):
            return Captions(lines, text or name)
    return Captions((), " ".join(text.split()) or name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ""


def _lines(text: str) -> tuple[tuple[float, float, str], ...]:
    lines = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        if times := _TIMES.search(block):
            words = " ".join(_MARKUP.sub("", block[times.end() :].partition("\n")[2]).split())
            if words:
                lines.append((_seconds(times[1]), _seconds(times[2]), words))
    return tuple(lines)


def _seconds(text: str) -> float:
    seconds = 0.0
    for part in text.replace(",", ".").split(":"):
        seconds = seconds * 60 + float(part)
    return seconds
