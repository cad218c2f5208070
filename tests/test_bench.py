"""The small parts of the benchmark; what it measures is measured by `lookalike bench` itself."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lookalike.errors import SetupError
from lookalike.settings import Settings
from tests.clips import BLACK, Scene, make_clip
from workers import bench, keyframes

CUTS = bench._benchmark("cuts")


def report(**changes: Any) -> dict[str, Any]:
    ratios = {name: 1.0 + n for n, name in enumerate(bench.RATIOS)}
    counts = {"frames": 100, "keyframes_exact": 5, "keyframes_fast": 4, "keyframes_article": 3, "clips": 2, "rounds": 3}
    measured = {"hard_cut_recall_fast": 0.991, "peak_rss_mb": 812.0, "kept_share": 0.0101}
    return {"ratios": ratios, **measured, **counts, "cpu_s": {"decode": 1.25}, **changes}


def still_clips(folder: Path, *seeds: int) -> list[Path]:
    """A clip of one unmoving picture each."""
    for seed in seeds:
        make_clip(folder / f"{seed}.mp4", [Scene(40, seed=seed)])
    return [folder / f"{seed}.mp4" for seed in seeds]


def test_ratios__are_those_that_the_report_holds() -> None:
    """`measure` writes the names out; the table and the README read them from RATIOS."""
    keys = next(
        [key.value for key in value.keys if isinstance(key, ast.Constant)]
        for node in ast.walk(ast.parse(inspect.getsource(bench.measure)))
        if isinstance(node, ast.Dict)
        for name, value in zip(node.keys, node.values, strict=True)
        if isinstance(name, ast.Constant) and name.value == "ratios" and isinstance(value, ast.Dict)
    )
    assert keys == list(bench.RATIOS)


def test_table__shows_each_ratio_and_what_is_asked() -> None:
    lines = bench._table(report()).splitlines()
    assert lines[0] == "2 clips, 100 frames, 5 keyframes (fast 4, article 3), median of 3 rounds"
    for n, (name, (what, asked)) in enumerate(bench.RATIOS.items()):
        assert f"{1.0 + n:8.2f}  {name}: {what} (asked: {asked})" in lines
    assert "   0.991  hard_cut_recall_fast: share of hard cuts found (asked: at least .98)" in lines
    assert lines[-1] == "    1.25  decode"


def test_table__says_why_a_figure_is_missing() -> None:
    shown = bench._table(report(hard_cut_recall_fast=None, hard_cut_recall_fast_reason="all clips look the same"))
    assert "---  hard_cut_recall_fast: not measured: all clips look the same" in shown


def test_benchmarks__are_loaded_by_name() -> None:
    assert callable(bench._benchmark("article").run)
    with pytest.raises(SetupError, match=r"missing\.py is missing; .* source tree"):
        bench._benchmark("missing")


@pytest.mark.parametrize(
    ("found", "true", "share"),
    [
        ([10, 50], [10, 50], 1.0),
        ([12, 48], [10, 50], 1.0),
        ([13, 47], [10, 50], 0.0),
        ([10, 20, 30], [10, 50], 0.5),
        ([], [10], 0.0),
        ([], [], 1.0),
    ],
)
def test_recall(found: list[int], true: list[int], share: float) -> None:
    assert CUTS.recall(found, true) == share


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_splice__its_cuts_are_there(tmp_path: Path, mode: str) -> None:
    clips = still_clips(tmp_path, 1, 2)
    spliced = tmp_path / "spliced.mp4"
    cuts = CUTS.splice(clips, spliced, shots=5)
    assert len(cuts) == 4
    assert cuts == sorted(cuts)
    found = keyframes.extract(spliced, 1, tmp_path / "out", keyframes.KeyframeOptions(mode=mode))
    assert list(found.cuts) == cuts
    assert found.facts.frame_count > cuts[-1]


def test_splice__same_seed_same_clip(tmp_path: Path) -> None:
    clips = still_clips(tmp_path, 1, 2)
    first = CUTS.splice(clips, tmp_path / "a.mp4", shots=4, seed=3)
    assert CUTS.splice(clips, tmp_path / "b.mp4", shots=4, seed=3) == first
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(
    "scene", [Scene(40, seed=1), BLACK(40), Scene(5, seed=1)], ids=["one picture", "black", "short"]
)
def test_splice__nothing_to_cut_between_is_said(tmp_path: Path, scene: Scene) -> None:
    make_clip(tmp_path / "calm.mp4", [scene])
    with pytest.raises(ValueError, match="1 clips have no two of that kind in turn; name more"):
        CUTS.splice([tmp_path / "calm.mp4"], tmp_path / "out.mp4", shots=3)
    assert not (tmp_path / "out.mp4").exists()


def test_hard_cut_recall__is_null_with_the_reason(tmp_path: Path) -> None:
    clips = still_clips(tmp_path, 1)
    got = bench._hard_cut_recall(CUTS, clips, Settings(data_dir=tmp_path), tmp_path)
    assert got["hard_cut_recall_fast"] is None
    assert "name more, or more different, clips" in got["hard_cut_recall_fast_reason"]


def test_hard_cut_recall__of_two_pictures_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_CUT_SHOTS", 6)
    got = bench._hard_cut_recall(CUTS, still_clips(tmp_path, 1, 2), Settings(data_dir=tmp_path), tmp_path)
    assert got == {"hard_cut_recall_fast": 1.0}


def test_command__clips_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    result = CliRunner().invoke(bench.command, ["--clips", str(tmp_path)])
    assert isinstance(result.exception, SetupError)
    assert str(result.exception) == "none of the 1 clips can be read; 'lookalike prelabel' tells why"


@pytest.mark.parametrize("option", ["--repeat", "--clusters"])
def test_command__zero_is_refused(option: str) -> None:
    result = CliRunner().invoke(bench.command, [option, "0"])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output


def test_measure__another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="bench measures efficientnet-lite0, got 'google/vit'"):
        bench.measure([], Settings(embedder="google/vit"), tmp_path, 1, 2)
