"""One worker process: `python -m workers.worker --queue videos --name NAME`, settings from the environment."""

from __future__ import annotations

import logging

import click

from lookalike.errors import LookalikeError
from lookalike.logs import start_logging
from lookalike.queue import NAMES, redis_url, work_forever
from lookalike.settings import Settings, share_cores


@click.command()
@click.option("--queue", "queue_name", type=click.Choice(NAMES), required=True)
@click.option("--name", required=True, help="unique among all workers that were ever started")
def main(queue_name: str, name: str) -> None:
    """Run jobs of one queue until SIGTERM."""
    try:
        settings = Settings.from_environment()
        start_logging(settings)
        share_cores()
        from workers import jobs  # not before: it loads what OpenMP's setting is for

        place = jobs.open_workplace(settings, name)
        if queue_name == "videos":
            # a model that cannot be loaded is found before a video is claimed, and warm when the first one comes
            logging.getLogger("lookalike.worker").info("model %s, %d-d", place.embedder.name, place.embedder.dim)
    except LookalikeError as error:
        raise SystemExit(f"lookalike: {error}") from None
    work_forever(redis_url(settings.redis_url, settings.data_dir), queue_name, name)


if __name__ == "__main__":
    main()
