from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lookalike.errors import LookalikeError, RequestError
from lookalike.labels import LabelRow
from lookalike.records import Embeddings, Extraction, Keyframe, VideoFacts, keyframe_id
from lookalike.settings import Settings
from lookalike.store import Project, Store
from workers.evaluate import (
    Result,
    actions_to_finish,
    calibration_error,
    command,
    evaluate,
    labels_needed,
    read_labelled,
    read_project,
    summary,
)

PROJECT = "7.2026"

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


def test_actions_to_finish__labels_lists_corrections_and_what_is_left_open() -> None:
    assert actions_to_finish(10, np.array(["a", "a", "a", "b"]), wrong=1, left_open=3) == 10 + 2 + 1 + 3
    assert actions_to_finish(10, np.array([]), wrong=0, left_open=0) == 10


def test_calibration_error__distance_of_score_and_share_right() -> None:
    assert calibration_error(np.full(10, 0.9), np.arange(10) < 9) == pytest.approx(0)
    assert calibration_error(np.full(10, 0.9), np.arange(10) < 4) == pytest.approx(0.5)
    assert calibration_error(np.array([]), np.array([], bool)) == 0


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def refused(*arguments: str) -> str:
    """The sentence that `lookalike` ends with."""
    error = CliRunner().invoke(command, list(arguments)).exception
    assert isinstance(error, LookalikeError), error
    return str(error)


@pytest.fixture
def labelled(store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A project 7 of 160 keyframes of 8 categories in 4 videos; call it with what people say of them, by row."""
    monkeypatch.setenv("LOOKALIKE_STORE_URL", store_url)
    embeddings, truth = groups()
    choices = "".join(f'<Label value="{name}"/>' for name in sorted(set(truth)))
    tag = '<Video name="v" value="$video"/><TimelineLabels name="t" toName="v">'
    store.put_project(Project(PROJECT, 7, "Kinds", f"<View>{tag}{choices}</TimelineLabels></View>"))
    store.add_videos(PROJECT, [(task, f"/data/{task}.mp4", {}) for task in range(1, 5)])
    ids = []
    for number, row in enumerate(store.ledger.due(("video",), 4)):
        claim = store.ledger.claim(row.id, "w", lease_s=60, max_crashes=3)
        assert claim is not None
        video = int(claim.subject)
        frames = tuple(Keyframe(keyframe_id(video, n), video, n, n / 25, 9.0, n, n) for n in range(40))
        part = embeddings.vectors[40 * number : 40 * number + 40]
        own = Embeddings(np.array([frame.id for frame in frames]), part, Settings().embedder)
        facts = VideoFacts(Fraction(25), 40, 1.6, 640, 360)
        store.put_extraction(claim, Extraction(facts, frames, (), tuple(range(40))), own)
        ids += own.keyframe_ids.tolist()

    def say(rows: Iterable[int], person: str = "a@b", category: str | None = None) -> None:
        known = store.labels.labels(PROJECT)
        new = [
            LabelRow(ids[row], category or truth[row], "companion", row, len(known) + n + 1, person, float(n))
            for n, row in enumerate(rows)
        ]
        everything = [*known, *new]
        store.labels.put_labels(PROJECT, "companion", {row.task: "t" for row in everything}, everything)

    return say


def test_project__says_what_it_would_have_saved(labelled: Callable[..., None]) -> None:
    labelled(range(160))
    labelled([3], "c@d", "kind0")  # they disagree on this one
    said = CliRunner().invoke(command, ["--project", "7", "--seeds", "1"])
    assert said.exit_code == 0, said.output
    found = re.search(r"project 7: people would have had to give (\d+) of the 159 labels one by one", said.output)
    assert found, said.output
    assert int(found[1]) < 100
    said = CliRunner().invoke(command, ["--project", "7", "--seeds", "1", "--json"])
    report = json.loads(said.output)
    assert (report["keyframes"], report["categories"]) == (159, 8)
    assert sorted({r["budget"] for r in report["results"]}) == [8, 16, 32, 64]


def test_project__near_duplicates_count_once(labelled: Callable[..., None], store: Store) -> None:
    ids = store.load_embeddings(PROJECT, Settings().embedder).keyframe_ids.tolist()
    store.labels.fold(PROJECT, {k: ids[0] if n in (8, 16) else k for n, k in enumerate(ids)})
    labelled(range(40))
    embeddings, truth = read_project(store, 7, Settings().embedder)
    assert embeddings.keyframe_ids.tolist() == [k for n, k in enumerate(ids[:40]) if n not in (8, 16)]
    assert truth == [f"kind{n % 8}" for n in range(40) if n not in (8, 16)]


def test_project__too_little_gets_a_sentence(labelled: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    labelled(range(7))
    assert refused("--project", "7") == "label at least 20 keyframes first; project 7 has 7"
    assert refused("--project", "9") == "project 9 is not connected to this backend; connected: 7"
    monkeypatch.setenv("LOOKALIKE_EMBEDDER", "another/model")
    assert "no embeddings by another/model" in refused("--project", "7")


def test_project__one_category_is_nothing_to_tell_apart(labelled: Callable[..., None]) -> None:
    labelled(range(25), category="kind0")
    assert refused("--project", "7") == "label a second category first; all 25 of project 7 are kind0"


def test_command__a_file_or_a_project(tmp_path: Path) -> None:
    path = write(tmp_path / "emb.npz", X=np.zeros((2, 3), np.float32), y=np.array(["a", "b"]))
    for arguments in ([], [str(path), "--project", "7"]):
        said = CliRunner().invoke(command, arguments)
        assert said.exit_code == 2
        assert "give either VECTORS or --project" in said.output


def test_command__never_imports_torch() -> None:
    code = "import sys, workers.evaluate; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_labels_needed__cheapest_that_kept_the_promise() -> None:
    def ours(budget: int, coverage: float, precision: float | None) -> Result:
        return Result(budget, "lookalike", 0.9, coverage, precision, 0.0, 5.0, 50.0, budget)

    broken, kept, dear = ours(10, 0.9, 0.9), ours(20, 0.75, 0.96), ours(60, 0.5, 1.0)
    assert labels_needed([broken, kept, dear], 100, 0.95) == (kept, 40)
    assert labels_needed([broken, ours(20, 0, None)], 100, 0.95) is None
    assert "people would have had to give 40 of the 100 labels one by one: 20 first, and 20 that" in summary(
        [broken, kept, dear], 100, 0.95
    )
    assert "all 100 labels" in summary([broken], 100, 0.95)


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
    assert "cannot read" in refused(str(tmp_path / "not.npz"))
    path = write(tmp_path / "no_y.npz", X=np.zeros((3, 2), np.float32))
    assert "as label or y" in refused(str(path))
    path = write(tmp_path / "nan.npz", X=np.full((2, 2), np.nan, np.float32), y=np.zeros(2, int))
    assert "must be finite" in refused(str(path))


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


def test_read_labelled__parquet_and_what_has_no_labels(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"vector": [[1.0], [2.0]], "label": ["a", "b"]}), tmp_path / "emb.parquet")
    assert read_labelled(tmp_path / "emb.parquet")[1] == ["a", "b"]
    np.savez(tmp_path / "bare.npz", X=np.zeros((2, 3)))
    with pytest.raises(RequestError, match="must hold the category of each vector, as label or y"):
        read_labelled(tmp_path / "bare.npz")
