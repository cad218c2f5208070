"""`python -m backend.serve`: the backend under gunicorn, with its settings from the environment."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from typing import Any

import click
from flask import Flask
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]
from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from backend.app import create_app
from backend.services import open_services
from lookalike.errors import LookalikeError, SettingsError
from lookalike.logs import start_logging
from lookalike.settings import Settings

_MEMORY = "/dev/shm"  # noqa: S108
#: 16 MB, the largest picture to search by, at 2 Mbit/s
_ARRIVES_WITHIN_S = 64.0


def main() -> int:
    """Serve until SIGTERM, when the requests in hand are answered first. Exit status 2: a setting is wrong."""
    try:
        settings = Settings.from_environment()
        check_address(settings)
        open_services(settings).close()  # what is wrong is one sentence here, and a traceback in gunicorn's worker
    except LookalikeError as error:
        print(f"lookalike backend: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    start_logging(settings)
    _Server(settings).run()
    return 0


@click.command()
def command() -> None:
    """Run the ML backend that Label Studio connects to, until SIGTERM; its settings come from the environment."""
    sys.exit(main())


def check_address(settings: Settings) -> None:
    """Raises SettingsError for an address that others can reach while everybody is let in."""
    if not settings.basic_auth_user and not settings.is_on_loopback:
        raise SettingsError(
            f"host {settings.host} can be reached from other machines: set LOOKALIKE_BASIC_AUTH_USER and "
            "LOOKALIKE_BASIC_AUTH_PASS, or bind to 127.0.0.1"
        )


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        host = self._settings.host
        options: dict[str, Any] = {
            "bind": f"[{host.strip('[]')}]:{self._settings.port}" if ":" in host else f"{host}:{self._settings.port}",
            "proc_name": "lookalike-backend",
            "worker_class": _Worker,
            "workers": 1,  # one process: its counters are all there are, and two answers to one task are seen together
            "threads": 8,
            "timeout": 60,
            "graceful_timeout": 30,
            # Label Studio keeps connections open and does not repeat a POST that meets one just closed
            "keepalive": 75,
            "preload_app": False,  # a database connection must not be carried over a fork
            "control_socket_disable": True,  # else a socket in the home folder
            "worker_tmp_dir": _MEMORY if os.access(_MEMORY, os.W_OK) else None,  # a heartbeat must not wait for a disk
            "logger_class": _Logger,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        threadpool_limits(1)  # on two threads of BLAS, which wait by spinning, a search takes as long and twice the CPU
        return create_app(self._settings)


class _Worker(ThreadWorker):  # type: ignore[misc]
    """Stops reading a request that does not arrive: whoever has gone, or sends a byte now and then, would hold one of
    the threads for ever. What has arrived is answered, however long that takes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun: dict[Any, float] = {}  # by connection

    def handle(self, conn: Any) -> Any:
        self._begun[conn] = time.monotonic()
        try:
            return super().handle(conn)
        finally:
            del self._begun[conn]

    def notify(self) -> None:
        """gunicorn's heartbeat, at least once a second."""
        super().notify()
        for conn, begun in self._begun.copy().items():
            if time.monotonic() - begun > _ARRIVES_WITHIN_S:
                with contextlib.suppress(OSError):  # it is closed by now
                    conn.sock.shutdown(socket.SHUT_RD)


class _Logger(Logger):  # type: ignore[misc]
    """gunicorn's lines through our handler, which takes secrets out."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.handlers.clear()


if __name__ == "__main__":
    sys.exit(main())
