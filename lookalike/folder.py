"""The data folder: one program at a time that changes what is in it behind the others' backs."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from lookalike.errors import SettingsError, SetupError
from lookalike.settings import Settings


def check_there(settings: Settings) -> None:
    """For what needs a ledger that is there: raises SettingsError where there is none, and makes nothing."""
    if not settings.store_url and not settings.ledger_path.exists():
        raise SettingsError(
            f"there is no ledger in {settings.data_dir}; name the folder that `lookalike up` uses by --data-dir"
        )


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """One `up`, or one `restore`, per data folder. Raises SetupError where it is taken or cannot be made."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("w")
    except OSError as error:
        raise SetupError(f"the folder {data_dir} cannot be used: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SetupError(f"another 'lookalike up' uses {data_dir}; stop it, or name another --data-dir") from None
        yield
