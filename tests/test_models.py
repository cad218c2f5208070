"""Models by name: how one is asked for, and that the cards tell the truth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lookalike import models
from lookalike.errors import EmbedderError
from lookalike.models import CARDS, Spec, card, parse_spec
from tests.models import real_families

DOCS = Path(__file__).parents[1] / "docs" / "models.md"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("efficientnet-lite0", Spec("efficientnet-lite0")),
        ("facebook/vit-mae-base#mean", Spec("facebook/vit-mae-base", pooling="mean")),
        ("some/model@v1.2", Spec("some/model", "v1.2")),
        ("some/model@0123abc#cls", Spec("some/model", "0123abc", "cls")),
    ],
)
def test_parse_spec__taken_apart(text: str, spec: Spec) -> None:
    assert parse_spec(text) == spec


def test_parse_spec__a_folder_is_taken_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "my@model#3").mkdir()
    assert parse_spec(f"{tmp_path}/my@model#3") == Spec(f"{tmp_path}/my@model#3")
    assert parse_spec(f"{tmp_path}#cls") == Spec(str(tmp_path), pooling="cls")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("some/model#max", "after # comes one of pooled, cls, mean, sum, got 'max'"),
        ("some/model#", "got ''"),
        ("some/model@", "after @ comes a revision"),
        ("efficientnet-lite0@v2", "only models of the hub have revisions; leave @v2 out"),
        ("./@main", "leave @main out"),
        ("", "names no model; choose one of 'lookalike models'"),
    ],
)
def test_parse_spec__what_is_wrong(text: str, sentence: str) -> None:
    with pytest.raises(EmbedderError, match=sentence):
        parse_spec(text)


def test_card__whatever_revision_and_pooling() -> None:
    assert card("facebook/vit-mae-base@main#cls") == CARDS["facebook/vit-mae-base"]
    assert card("somebody/else") is None


FAMILIES = real_families().FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_cards__parameters_are_those_of_the_real_model(family: str) -> None:
    """Made without memory: only counted."""
    known = CARDS[FAMILIES[family].card]
    with torch.device("meta"):
        model = FAMILIES[family].model()
    halves = {"openai": ("vision_", "visual_"), "google/siglip2": ("vision_",), "laion": ("audio_",)}
    half = next((names for start, names in halves.items() if known.name.startswith(start)), "")
    counted = sum(p.numel() for name, p in model.named_parameters() if name.startswith(half))
    assert counted / 1e6 == pytest.approx(known.parameters_m, rel=0.02)


def test_cards__of_the_docs_are_these() -> None:
    assert models.table() in DOCS.read_text(encoding="utf-8"), "paste what lookalike.models.table() gives"


def test_command__lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        value = "my_package.embedding:embed"

    monkeypatch.setattr(models, "functions", lambda: {"my-function": Point()})
    shown = CliRunner().invoke(models.command).output.splitlines()
    assert len(shown) == len(CARDS) + 1
    assert shown[0].split() == ["efficientnet-lite0", "pictures", "1280-d", "3.4", "M", "pooled", "Apache-2.0"]
    assert next(line for line in shown if "dinov3-vits16" in line).endswith("DINOv3 License, gated")
    assert shown[-1].split() == ["my-function", "pictures", "yours:", "my_package.embedding:embed"]
