"""What Prometheus reads."""

from __future__ import annotations

import contextlib
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from backend.app import create_app
from lookalike.settings import Settings
from lookalike.store import open_store

TASKS = {
    "project": "3.1795418028",
    "label_config": '<View><TimelineLabels name="t" toName="v"><Label value="a"/></TimelineLabels>'
    '<Video name="v" value="$v"/></View>',
    "tasks": [{"id": n, "data": {"v": f"{n}.mp4"}} for n in range(3)],
}


def read(settings: Settings) -> tuple[dict[tuple[str, tuple[str, ...]], float], str]:
    client = create_app(settings).test_client()
    client.post("/predict", json=TASKS)
    client.get("/no-such-page")
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain")
    text = answer.get_data(as_text=True)
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(s.name, tuple(s.labels[name] for name in sorted(s.labels))): s.value for s in samples}, text


def test_metrics__tell_the_ledger_the_queue_and_the_requests(tmp_path: Path, valkey: str) -> None:
    found, text = read(Settings(data_dir=tmp_path, redis_url=valkey))
    assert found["lookalike_work", ("video", "due")] == 3
    assert found["lookalike_queue_jobs", ("videos",)] >= 3
    assert found["lookalike_part_up", ("ledger",)] == found["lookalike_part_up", ("queue",)] == 1
    assert 0 <= found["lookalike_oldest_age_seconds", ("video",)] < 60
    assert found["lookalike_workers", ()] == 0
    assert found["lookalike_requests_total", ("200", "/predict")] == 1
    assert found["lookalike_requests_total", ("404", "unknown")] == 1
    assert found["lookalike_request_duration_seconds_count", ("/predict",)] == 1
    assert "lookalike_build_info{version=" in text
    assert "1795418028" not in text  # no project, task or path is ever a label
    assert "no-such-page" not in text


def test_metrics__tell_what_workers_did(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/nobody.sock")
    with contextlib.closing(open_store(settings.sqlalchemy_url)) as store:
        store.ledger.tally("video", "done", "", [("whole", 12.0), ("embedding", 0.2)])
        store.ledger.tally("video", "done", "", [("whole", 200.0), ("embedding", 2.0)])
        store.ledger.tally("video", "later", "MediaUnreachable", [])
        store.ledger.tally("video", "later", "MediaHeldUp", [])
        store.ledger.tally("video", "died", "", [])
        store.ledger.tally("deliver", "failed", "LabelStudioRefused", [])
    found, _ = read(settings)
    assert found["lookalike_jobs_total", ("video", "done")] == 2
    assert found["lookalike_jobs_total", ("deliver", "failed")] == 1
    assert found["lookalike_retries_total", ("video", "MediaUnreachable")] == 1
    assert found["lookalike_retries_total", ("video", "WorkerDied")] == 1
    name = "lookalike_stage_duration_seconds"
    assert found[f"{name}_count", ("video", "embedding")] == 2
    assert found[f"{name}_sum", ("video", "embedding")] == 2.2
    buckets = [
        found[f"{name}_bucket", ("video", bound, "whole")] for bound in ("10.0", "30.0", "100.0", "300.0", "+Inf")
    ]
    assert buckets == [0, 1, 1, 2, 2]


def test_metrics__are_told_without_a_queue_server(tmp_path: Path) -> None:
    found, _ = read(Settings(data_dir=tmp_path, redis_url=f"unix://{tmp_path}/nobody.sock"))
    assert found["lookalike_part_up", ("queue",)] == 0
    assert found["lookalike_work", ("video", "due")] == 3
