from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lookalike.errors import RequestError
from lookalike.records import Embeddings
from workers.evaluate import actions_to_finish, calibration_error, command, evaluate, read_labelled

EMB = Path(__file__).parents[2] / "shared" / "data" / "emb"


def groups(n: int = 160) -> tuple[Embeddings, list[str]]:
    rng = np.random.default_rng(0)
    kind = np.arange(n) % 8
    vectors = (rng.normal(0, 1.2, (8, 48))[kind] + rng.normal(0, 1, (n, 48))).astype(np.float32)
    return Embeddings(np.arange(n), vectors, "test"), [f"kind{k}" for k in kind]


def test_evaluate__all_methods_at_all_budgets() -> None:
    embeddings, truth = groups()
    results = evaluate(embeddings, truth, [8, 24], seeds=2)
    assert [(r.budget, r.method) for r in results] == [
        (b, m) for b in (8, 24) for m in ("lookalike", "article", "random")
    ]
    for result in results:
        assert result.labels == result.budget
        assert result.budget / 160 <= result.accuracy <= 1
        assert 1 <= result.classes_seen <= 8
        assert (result.ece is None) == (result.method != "lookalike")
    ours, random = results[3], results[5]
    assert ours.accuracy > 0.95
    assert ours.accuracy > random.accuracy
    assert ours.actions < 160


def test_evaluate__labels_of_everything_leave_nothing_to_guess() -> None:
    embeddings, truth = groups(24)
    ours = evaluate(embeddings, truth, [24], seeds=1)[0]
    assert (ours.accuracy, ours.coverage, ours.precision, ours.actions) == (1, 0, None, 24)


def test_evaluate__says_what_is_wrong() -> None:
    embeddings, truth = groups(24)
    with pytest.raises(RequestError, match="budget must be between 1 and the number of keyframes, 24, got 25"):
        evaluate(embeddings, truth, [25])
    with pytest.raises(RequestError, match="one category for each of the 24"):
        evaluate(embeddings, truth[:-1], [5])


def test_actions_to_finish__labels_bulk_confirmations_and_corrections() -> None:
    proposed, unsure = np.array(["a", "a", "a", "b"]), np.array(["b", "b"])
    assert actions_to_finish(10, [proposed, unsure], 4) == 10 + (2 + 1) + 4


def test_calibration_error__distance_of_score_and_share_right() -> None:
    assert calibration_error(np.full(10, 0.9), np.arange(10) < 9) == pytest.approx(0)
    assert calibration_error(np.full(10, 0.9), np.arange(10) < 4) == pytest.approx(0.5)
    assert calibration_error(np.array([]), np.array([], bool)) == 0


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_command__json_and_table(tmp_path: Path) -> None:
    embeddings, truth = groups(80)
    names, y = np.unique(truth, return_inverse=True)
    path = write(tmp_path / "emb.npz", X=embeddings.vectors.astype(np.float16), y=y.astype(np.int16), classes=names)
    runner = CliRunner()
    answer = runner.invoke(command, [str(path), "--budget", "8", "--seeds", "1", "--json"])
    assert answer.exit_code == 0, answer.output
    results = json.loads(answer.output)["results"]
    assert {r["method"] for r in results} == {"lookalike", "article", "random"}
    assert set(results[0]) == {
        "budget", "method", "accuracy", "coverage", "precision", "ece", "classes_seen", "actions", "labels"
    }  # fmt: skip
    table = runner.invoke(command, [str(path), "--budget", "8", "--seeds", "1"]).output
    assert "lookalike" in table
    assert "of 80" in table


def test_command__unreadable_files_get_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "not.npz").write_text("hello")
    runner = CliRunner()
    assert "cannot read" in runner.invoke(command, [str(tmp_path / "not.npz")]).output
    path = write(tmp_path / "no_y.npz", X=np.zeros((3, 2), np.float32))
    assert "has no y" in runner.invoke(command, [str(path)]).output
    path = write(tmp_path / "nan.npz", X=np.full((2, 2), np.nan, np.float32), y=np.zeros(2, int))
    assert "must be finite" in runner.invoke(command, [str(path)]).output


def test_read_labelled__text_labels_need_no_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "emb.npz", X=np.zeros((2, 3), np.float32), y=np.array(["a", "b"]))
    embeddings, truth = read_labelled(path)
    assert truth == ["a", "b"]
    assert embeddings.vectors.shape == (2, 3)


@pytest.mark.skipif(not EMB.is_dir(), reason="the embeddings of ../shared/data are not here")
def test_evaluate__twenty_classes_of_caltech_keep_the_promise() -> None:
    with np.load(EMB / "lite0_caltech101_f16.npz") as data:
        rows = np.flatnonzero(data["y"] < 20)[::3]
        vectors, truth = data["X"][rows].astype(np.float32), [str(data["classes"][c]) for c in data["y"][rows]]
    ours, article, random = evaluate(Embeddings(np.arange(len(rows)), vectors, "lite0"), truth, [40], seeds=1)
    assert ours.accuracy > max(0.9, article.accuracy, random.accuracy)
    assert ours.precision is not None
    assert ours.precision >= 0.9  # Faces and Faces_easy are hard to tell apart
    assert ours.coverage > 0.5
