"""The contact sheet: what a person sees, and what hostile names cannot do."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from lookalike.errors import MediaError
from lookalike.records import Clustering, cluster_name
from workers.sheet import THUMBNAIL_PX, Shown, sections_of, write_sheet, write_thumbnail


def shown(identifier: int, name: str = "a.mp4", time_s: float | None = 1.0) -> Shown:
    return Shown(identifier, name, time_s, f"keyframes/x/{identifier}.jpg", f"thumbs/x/{identifier}.jpg")


def clustering(ids: list[int], clusters: list[int], centroids: list[int], similarity: list[float]) -> Clustering:
    return Clustering(np.array(ids), np.array(clusters), np.array(centroids), np.array(similarity, np.float32))


class Page(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for name, attrs in self.elements if name == tag and attribute in attrs]


def test_sections__largest_first_centroid_apart_members_by_similarity() -> None:
    ids = [10, 11, 12, 13, 14]
    found = list(
        sections_of([shown(i) for i in ids], clustering(ids, [1, 0, 1, 1, 0], [11, 12], [0.5, 0.9, 0.8, 0.7, 0.6]))
    )
    assert [section.name for section in found] == ["c0001", "c0000"]
    assert found[0].centroid is not None
    assert found[0].centroid.keyframe_id == 12
    assert [each.keyframe_id for each in found[0].members] == [13, 10]
    assert [round(each.similarity, 1) for each in found[0].members] == [0.7, 0.5]


def test_sections__number_that_is_no_longer_in_use_has_none() -> None:
    (section,) = sections_of([shown(1), shown(2)], clustering([1, 2], [2, 2], [-1, -1, 2], [0.5, 1.0]))
    assert section.name == cluster_name(2)
    assert section.size == 2


def test_sections__those_like_nothing_else_come_last() -> None:
    found = list(sections_of([shown(1), shown(2), shown(3)], clustering([1, 2, 3], [-1, -1, 0], [3], [0, 0, 1])))
    assert [(section.name, section.centroid is None) for section in found] == [
        ("c0000", False),
        ("like nothing else", True),
    ]


@pytest.mark.parametrize(
    ("time_s", "text"), [(0.0, "0:00.0"), (59.96, "1:00.0"), (62.54, "1:02.5"), (3662.5, "1:01:02.5"), (None, "")]
)
def test_shown__time(time_s: float | None, text: str) -> None:
    assert shown(1, time_s=time_s).time == text


def test_write_sheet__every_picture_once_with_relative_links(tmp_path: Path) -> None:
    ids = [1, 2, 3]
    grouped = clustering(ids, [0, 0, 1], [1, 3], [1, 0.9, 1])
    write_sheet(tmp_path / "clusters.html", [shown(i) for i in ids], grouped, files=1)
    page = Page(tmp_path / "clusters.html")
    pictures = [href for href in page.all("a", "href") if not href.startswith("#")]
    assert sorted(pictures) == [f"keyframes/x/{i}.jpg" for i in ids]
    assert {"c0000", "c0001"} <= set(page.all("section", "id"))
    assert "2 keyframes" in page.text
    sources = page.all("img", "src")
    assert sources
    assert not any(re.match(r"[a-z]+:|/", address) for address in pictures + sources)  # nothing but this folder


def test_write_sheet__hostile_name_is_text(tmp_path: Path) -> None:
    hostile = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}.mp4"
    each = Shown(1, hostile, 0.0, "keyframes/a b#?%\"<'/1.jpg", "thumbs/a b#?%\"<'/1.jpg")
    write_sheet(
        tmp_path / "clusters.html", [each], clustering([1], [0], [1], [1.0]), files=1, failed=[(hostile, hostile)]
    )
    page = Page(tmp_path / "clusters.html")
    assert [tag for tag, _ in page.elements].count("script") == 1  # our own
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert "x" not in page.all("img", "src")
    assert page.all("span", "title")[0] == hostile
    assert hostile in page.text
    assert "keyframes/a%20b%23%3F%25%22%3C%27/1.jpg" in page.all("a", "href")


def test_write_sheet__name_that_is_no_unicode(tmp_path: Path) -> None:
    write_sheet(tmp_path / "c.html", [shown(1, "bad\udcff.mp4")], clustering([1], [0], [1], [1.0]), files=1)
    assert "bad?.mp4" in Page(tmp_path / "c.html").text


def test_write_sheet__nothing_found_says_so(tmp_path: Path) -> None:
    write_sheet(tmp_path / "c.html", [], clustering([], [], [], []), files=1)
    assert "No keyframe was found" in Page(tmp_path / "c.html").text


def test_write_thumbnail__keeps_shape_and_never_enlarges(tmp_path: Path) -> None:
    for size, expected in (((1280, 720), (THUMBNAIL_PX, 135)), ((100, 300), (100, 300)), ((500, 250), (240, 120))):
        cv2.imwrite(str(tmp_path / "a.jpg"), np.full((size[1], size[0], 3), 90, np.uint8))
        write_thumbnail(tmp_path / "a.jpg", tmp_path / "t" / "a.jpg")
        assert cv2.imread(str(tmp_path / "t" / "a.jpg")).shape == (expected[1], expected[0], 3)


def test_write_thumbnail__missing_picture(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="is missing or broken"):
        write_thumbnail(tmp_path / "gone.jpg", tmp_path / "t.jpg")
