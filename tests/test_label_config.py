"""The labeling configurations that come with Lookalike can be filled by it."""

from __future__ import annotations

import pytest

from lookalike import wire
from lookalike.label_config import shipped_config
from tests.services import ROOT

NAMES = sorted(path.stem for path in (ROOT / "label_config").glob("*.xml"))


def test_shipped_config__there_are_some() -> None:
    assert NAMES == ["keyframe_choices", "keyframe_choices_interactive", "video_choices", "video_timeline"]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_config__can_be_filled_and_has_the_reserved_label(name: str) -> None:
    config = wire.parse_label_config(shipped_config(name))
    assert config.reserved == wire.RESERVED_CATEGORY
    assert {"Person", "Animal", "Vehicle", "Landscape", "Other"} <= set(config.categories)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("video_timeline", ("TimelineLabels", "Video", "video")),
        ("video_choices", ("Choices", "Video", "video")),
        ("keyframe_choices", ("Choices", "Image", "image")),
        ("keyframe_choices_interactive", ("Choices", "Image", "image")),
    ],
)
def test_shipped_config__shape(name: str, shape: tuple[str, str, str]) -> None:
    config = wire.parse_label_config(shipped_config(name))
    assert (config.control_tag, config.object_tag, config.data_key) == shape


def test_shipped_config__unknown_name() -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.xml"):
        shipped_config("nothing")
