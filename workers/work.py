"""`lookalike work`: the workers of one machine, for a queue server, a ledger and a Label Studio that are elsewhere."""

from __future__ import annotations

import contextlib
import logging

import click

from lookalike.logs import start_logging
from lookalike.settings import Settings
from lookalike.store import open_store
from workers.supervisor import Supervisor, reconcile, stop_on_signals, worker_services

log = logging.getLogger("lookalike.work")


@click.command()
@click.option("--workers", type=int, help="Video worker processes.  [default: 1]")
def command(workers: int | None) -> None:
    """Run video workers, and one worker for everything short, until SIGTERM; what is in hand is finished first."""
    settings = Settings.from_environment(workers=workers)
    settings = settings.with_(data_dir=settings.data_dir.resolve())
    start_logging(settings)
    stopping = stop_on_signals()
    with (
        contextlib.closing(open_store(settings.sqlalchemy_url)) as store,
        Supervisor(settings.data_dir / "logs") as supervisor,
    ):
        for service in worker_services(settings, store):
            supervisor.start(service)
        served = settings.label_studio_url or "whoever asks for predictions, as LOOKALIKE_LABEL_STUDIO_URL is not set"
        log.info("%d at work on videos, one on everything short; for %s", settings.workers, served)
        reconcile(settings, store, supervisor, stopping)
