"""Log lines: to stderr, as text or JSON, without secrets, and with what they are about.

All that is done for a task has one `trace_id`, from the webhook that names it to the delivery of its prediction.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields

from lookalike.settings import Settings

#: what a secret looks like where we do not know it: tokens in headers, and passwords in URLs
_HEADER = re.compile(r"(?i)\b(token|bearer|basic)\s+[A-Za-z0-9+/=_.~-]{8,}")
_URL_PASSWORD = re.compile(r"(\w+://[^\s/:@]*:)[^\s/@]+@")
_SIGNED_QUERY = re.compile(r"(?i)\b((?:x-amz-)?(?:signature|security-token|sig|token|access_token)=)[^&\s\"']+")


_facts: ContextVar[Mapping[str, object]] = ContextVar("facts")


def start_logging(settings: Settings, level: int = logging.INFO) -> None:
    """Send this process's log lines to stderr in the chosen format."""
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(settings))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # RQ tells each job twice, urllib3 each connection
    for noisy in ("rq.worker", "urllib3", "httpx", "alembic", "filelock", "faiss.loader"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def about(**facts: object) -> Iterator[None]:
    """Whatever is logged within tells these facts: as keys in JSON, at the end of the line in text."""
    token = _facts.set({**_facts.get({}), **facts})
    try:
        yield
    finally:
        _facts.reset(token)


def trace_id(project: str, task: int | None = None) -> str:
    """The id of all that is done for a task, or for a project as a whole: 32 hexadecimal digits."""
    subject = f"{project}/{'' if task is None else task}"
    return hashlib.blake2b(subject.encode(), digest_size=16).hexdigest()


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

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        facts = " ".join(f"{name}={value}" for name, value in _facts.get({}).items())
        return super().formatMessage(record) + (f" [{facts}]" if facts else "")


class _Json(_Text):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage(), self._secrets),
            **{
                name: redact(fact, self._secrets) if isinstance(fact, str) else fact
                for name, fact in _facts.get({}).items()
            },
        }
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info), self._secrets)
        return json.dumps(line)  # last: a secret with a quote or an umlaut in it looks different in JSON


def _formatter(settings: Settings) -> logging.Formatter:
    values = (str(getattr(settings, f.name)) for f in fields(settings) if f.metadata["secret"])
    secrets = tuple(value for value in values if len(value) >= 4)
    return (_Json if settings.log_format == "json" else _Text)(secrets)
