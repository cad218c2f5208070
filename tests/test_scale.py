from __future__ import annotations

import json
import time

import numpy as np
import pytest
from click.testing import CliRunner

from workers import bench, scale
from workers.propagation import build_graph


def test_timed__counts_cpu_not_waiting() -> None:
    slept, result = scale.timed(lambda: time.sleep(0.3))
    assert (slept < 0.1, result) == (True, None)

    def work() -> int:
        until = time.process_time() + 0.1
        while time.process_time() < until:
            sum(range(1000))
        return 7

    spent, result = scale.timed(work)
    assert (0.1 <= spent < 0.3, result) == (True, 7)


def test_make_embeddings__has_neighbours_like_real_pictures() -> None:
    embeddings, truth = scale.make_embeddings(3000)
    graph = build_graph(embeddings)
    nearest, tenth = np.median(graph.similarity[:, [0, 9]], axis=0)
    assert 0.8 < nearest < 0.9
    assert 0.65 < tenth < 0.8
    same = [truth[row] == truth[other] for row, other in enumerate(graph.neighbours[:, 0])]
    assert np.mean(same) > 0.9
    again, _ = scale.make_embeddings(3000)
    assert (again.vectors == embeddings.vectors).all()


def test_measure__all_figures_of_a_small_project() -> None:
    found = scale.measure([600])
    assert list(found) == [600]
    assert set(found[600]) == set(scale.FIGURES)
    assert all(value > 0 for value in found[600].values())
    assert found[600]["label_all"] == pytest.approx(found[600]["label_propagate"] + found[600]["label_plan"])
    assert found[600]["peak_mb"] > 50


def test_table__shows_each_figure_and_what_is_asked_of_that_size() -> None:
    figures = dict.fromkeys(scale.FIGURES, 1.5)
    lines = scale.table({14_000: figures, 500: figures}).splitlines()
    assert "14000 keyframes, CPU seconds" in lines
    assert "    1.50  label_all: s, all after one more label: propagation and plan (asked: under 0.5)" in lines
    assert "    1.50  label_all: s, all after one more label: propagation and plan" in lines
    assert len(lines) == 2 * (2 + len(scale.FIGURES))


def test_command__scale_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "measure", lambda sizes: {size: {"peak_mb": 1.0} for size in sizes})
    said = CliRunner().invoke(bench.command, ["--scale", "200", "--scale", "300", "--json"])
    assert json.loads(said.output) == {"scale": {"200": {"peak_mb": 1.0}, "300": {"peak_mb": 1.0}}}
