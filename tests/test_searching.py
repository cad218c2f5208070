"""The benchmark of searches, on a size that takes seconds."""

from __future__ import annotations

import numpy as np

from workers.searching import made_up, measure, table


def test_measure__a_small_project_over_http() -> None:
    [speed] = measure([1500])
    assert speed.keyframes == 1500
    assert speed.recall_at_50 >= 0.99
    assert 0 < speed.http_best_ms <= speed.http_ms
    assert speed.http_cpu_ms > 0
    assert 0 < speed.added_mb < speed.resident_mb < 500
    assert "1,500" in table([speed])


def test_made_up__rows_of_length_one_with_the_spread_of_a_real_model() -> None:
    rows = np.concatenate([vectors for vectors, _ in made_up(2000)])
    assert rows.shape == (2000, 1280)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    spread = rows.var(axis=0)
    assert 0.7 < spread[:256].sum() / spread.sum() < 0.85
