"""Log lines: to stderr, as text or JSON, without secrets."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import fields

from lookalike.settings import Settings

#: what a secret looks like where we do not know it: tokens in headers, and passwords in URLs
_HEADER = re.compile(r"(?i)\b(token|bearer|basic)\s+[A-Za-z0-9+/=_.~-]{8,}")
_URL_PASSWORD = re.compile(r"(\w+://[^\s/:@]*:)[^\s/@]+@")
_SIGNED_QUERY = re.compile(r"(?i)\b((?:x-amz-)?(?:signature|security-token|sig|token|access_token)=)[^&\s\"']+")


def start_logging(settings: Settings, level: int = logging.INFO) -> None:
    """Send this process's log lines to stderr in the chosen format."""
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(settings))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # RQ tells each job twice, urllib3 each connection
    for noisy in ("rq.worker", "urllib3", "httpx", "alembic", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def redact(line: str, secrets: tuple[str, ...] = ()) -> str:
    """The line without these secrets, and without what looks like one."""
    for secret in secrets:
        line = line.replace(secret, "[secret]")
    line = _HEADER.sub(r"\1 [secret]", line)
    line = _URL_PASSWORD.sub(r"\1[secret]@", line)
    return _SIGNED_QUERY.sub(r"\1[secret]", line)


class _Text(logging.Formatter):
    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record), self._secrets)


class _Json(_Text):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage(), self._secrets),
        }
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info), self._secrets)
        return json.dumps(line)  # last: a secret with a quote or an umlaut in it looks different in JSON


def _formatter(settings: Settings) -> logging.Formatter:
    values = (str(getattr(settings, f.name)) for f in fields(settings) if f.metadata["secret"])
    secrets = tuple(value for value in values if len(value) >= 4)
    return (_Json if settings.log_format == "json" else _Text)(secrets)
