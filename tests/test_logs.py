"""Log lines carry no secret, whichever way it gets into them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from lookalike.logs import about, redact, start_logging, trace_id
from lookalike.settings import Settings

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbiI6Mn0.s3cret_signature-x"
HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """Puts the process's logging back as it was."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = before
    root.setLevel(level)


def lines(root: logging.Logger, settings: Settings) -> io.StringIO:
    """Where the lines go from now on."""
    start_logging(settings)
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    out = io.StringIO()
    handler.setStream(out)
    return out


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (f"Authorization: Token {HEX}", "Authorization: Token [secret]"),
        (f"'Authorization': 'Bearer {TOKEN}'", "'Authorization': 'Bearer [secret]'"),
        ("authorization: basic bWU6c2VzYW1lMQ==", "authorization: basic [secret]"),
        ("redis://:sesame@host:6379/0", "redis://:[secret]@host:6379/0"),
        ("postgresql+psycopg://me:sesame@host/name", "postgresql+psycopg://me:[secret]@host/name"),
        (
            "GET https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Signature=abc123&X-Amz-Security-Token=def HTTP/1.1",
            "GET https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Signature=[secret]&X-Amz-Security-Token=[secret] "
            "HTTP/1.1",
        ),
        ("/hook?token=abc&x=1", "/hook?token=[secret]&x=1"),
        ("http://127.0.0.1:9090/health at 12:30 by me@host", "http://127.0.0.1:9090/health at 12:30 by me@host"),
        ("the token is wrong", "the token is wrong"),
    ],
)
def test_redact__what_looks_like_a_secret(line: str, shown: str) -> None:
    assert redact(line) == shown


def test_redact__what_is_known_as_one() -> None:
    assert redact("it said s3same! twice: s3same!", ("s3same!",)) == "it said [secret] twice: [secret]"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_log__settings_secrets_stay_out(root_logger: logging.Logger, log_format: str) -> None:
    password = 'ä "quoted" \\ password'
    settings = Settings(
        log_format=log_format, label_studio_token="sesame-token", basic_auth_user="me", basic_auth_pass=password
    )
    out = lines(root_logger, settings)
    log = logging.getLogger("lookalike.test")
    log.warning("token %s, password %s", "sesame-token", password)
    try:
        raise ValueError(f"cannot log in with sesame-token and {password}")
    except ValueError:
        log.exception("and in an exception: %s", {"Authorization": f"Token {HEX}"})
    text = out.getvalue()
    assert "ValueError: cannot log in with [secret] and [secret]" in text
    for secret in ("sesame", "quoted", HEX):
        assert secret not in text


def test_log__json_is_one_object_a_line(root_logger: logging.Logger) -> None:
    out = lines(root_logger, Settings(log_format="json"))
    logging.getLogger("lookalike.test").info("two\nlines of %s", "ümlaut")
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger("lookalike.test").exception("failed")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("INFO", "lookalike.test", "two\nlines of ümlaut")
    assert first["ts"] > 1.7e9
    assert "exception" not in first
    assert second["exception"].startswith("Traceback")
    assert second["exception"].endswith("KeyError: 'x'")


def test_about__lines_tell_what_they_are_about(root_logger: logging.Logger) -> None:
    log = logging.getLogger("lookalike.test")
    out = lines(root_logger, Settings(log_format="json", label_studio_token="sesame-token"))
    with about(project="7.1", task=3):
        with about(trace_id="abc", why="sesame-token"):
            log.info("done")
        log.info("still")
    log.info("nothing")
    first, second, third = (json.loads(line) for line in out.getvalue().splitlines())
    assert (first["project"], first["task"], first["trace_id"], first["why"]) == ("7.1", 3, "abc", "[secret]")
    assert (second["task"], "trace_id" in second) == (3, False)
    assert "task" not in third
    out = lines(root_logger, Settings())
    with about(task=3, trace_id="abc"):
        log.info("done")
    assert out.getvalue().endswith(" INFO lookalike.test: done [task=3 trace_id=abc]\n")


def test_trace_id__is_one_for_a_task_and_another_for_each_other() -> None:
    assert trace_id("7.1", 3) == trace_id("7.1", 3)
    assert len({trace_id("7.1", 3), trace_id("7.1", 4), trace_id("7.2", 3), trace_id("7.1"), trace_id("7.2")}) == 5
    assert len(trace_id("7.1", 3)) == 32


def test_log__text_is_readable(root_logger: logging.Logger) -> None:
    out = lines(root_logger, Settings())
    logging.getLogger("lookalike.test").warning("video %d is gone", 7)
    logging.getLogger("urllib3").info("chatter")
    assert out.getvalue().endswith(" WARNING lookalike.test: video 7 is gone\n")
    assert out.getvalue().count("\n") == 1
