"""Who is signed in to the pages, and addresses that sign somebody in once.

A session is a cookie that nobody but us can read: what it holds is encrypted with a key that lies in data_dir, for this
user only, so that a restart and every web process of the machine know it. What must not count any more, a session that
was ended and an address that was used, stands in the ledger until it would have run out anyway.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tempfile
import time
from contextlib import closing
from pathlib import Path

import click
from cryptography.fernet import Fernet, InvalidToken
from sqlalchemy import Engine, delete, select

from lookalike.errors import SettingsError, SetupError
from lookalike.folder import check_there
from lookalike.ledger import Part, insert
from lookalike.records import Json
from lookalike.schema import spent
from lookalike.settings import Settings
from lookalike.store import open_store

#: a session lasts a working week; Label Studio is asked about its token all the while
SESSION_S = 7 * 86400.0
#: an address is printed where its reader sits; shells and logs keep what they show
ADDRESS_S = 3600.0


class SignIns(Part):
    """What is encrypted for the pages, and which of it does not count any more."""

    def __init__(self, data_dir: Path, engine: Engine) -> None:
        """Raises SetupError where the key can neither be read nor made."""
        super().__init__(engine)
        key = _key(data_dir / "session.key")
        self._fernet = Fernet(key)
        #: for signing what need not be secret
        self.secret = hashlib.sha256(b"signing" + key).digest()

    def seal(self, content: Json, lasts_s: float) -> str:
        """A session as text for a cookie, good for so many seconds."""
        whole = {**content, "id": secrets.token_urlsafe(16), "until": time.time() + lasts_s}
        return self._fernet.encrypt(json.dumps(whole).encode()).decode()

    def open(self, text: str) -> Json | None:
        """What was sealed, with its "id" and "until"; None for anything else, and for what does not count any more."""
        try:
            content: Json = json.loads(self._fernet.decrypt(text.encode()))
        except (InvalidToken, ValueError):
            return None
        if content["until"] < time.time():
            return None
        with self.read() as connection:
            used = connection.execute(select(spent.c.id).where(spent.c.id == content["id"])).first()
        return None if used else content

    def end(self, session: Json) -> None:
        """Let a session that was opened not count any more."""
        self._spend(session["id"], session["until"])

    def ticket(self, lasts_s: float) -> str:
        """A word that counts once within so many seconds. Says nothing, and is short enough for a line."""
        word = f"{int(time.time() + lasts_s):x}.{secrets.token_urlsafe(12)}"
        return f"{word}.{self._mark(word)}"

    def redeem(self, ticket: str) -> bool:
        """Whether the ticket counted until now. Of two who ask at once, one is told yes."""
        word, _, mark = ticket.rpartition(".")
        if not hmac.compare_digest(mark.encode(errors="replace"), self._mark(word).encode()):
            return False
        until = int(word.split(".")[0], 16)
        return until >= time.time() and self._spend(word, until)

    def _mark(self, word: str) -> str:
        digest = hmac.digest(self.secret, b"ticket" + word.encode(errors="replace"), "sha256")
        return base64.urlsafe_b64encode(digest[:18]).decode()

    def _spend(self, identity: str, until: float) -> bool:
        with self.begin() as connection:
            connection.execute(delete(spent).where(spent.c.until < time.time()))
            row = insert(connection, spent).values(id=identity, until=until)
            return connection.execute(row.on_conflict_do_nothing(index_elements=["id"])).rowcount == 1


def address(settings: Settings, sign_ins: SignIns) -> str:
    """An address that signs whoever opens it first in, as the account that Lookalike acts as.

    Raises SettingsError where no account is set, and where the pages can be reached from other machines: there it would
    be worth stealing.
    """
    if not settings.label_studio_token:
        raise SettingsError(
            "set LOOKALIKE_LABEL_STUDIO_TOKEN first: the address signs in as the account that it belongs to"
        )
    if not settings.is_on_loopback:
        raise SettingsError(
            f"an address that signs in is only given where the pages answer on 127.0.0.1, not on {settings.host}; "
            f"sign in with your own Label Studio token at {settings.page_url}/login"
        )
    return f"{settings.page_url.rstrip('/')}/login/{sign_ins.ticket(ADDRESS_S)}"


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept.  [default: .lookalike]")
def command(data_dir: Path | None) -> None:
    """Print an address that signs you in to the pages on this machine: once, within the hour."""
    settings = Settings.from_environment(data_dir=data_dir).or_demo()
    check_there(settings)
    with closing(open_store(settings.sqlalchemy_url)) as store:
        click.echo(address(settings, SignIns(settings.data_dir, store.engine)))


def _key(path: Path) -> bytes:
    """The key in the file, which is made by whoever comes first."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            number, part = tempfile.mkstemp(dir=path.parent, prefix="session.", suffix=".part")  # for this user only
            try:
                with os.fdopen(number, "wb") as file:
                    file.write(Fernet.generate_key())
                with contextlib.suppress(FileExistsError):
                    os.link(part, path)  # whole or not at all, and never over another's
            finally:
                Path(part).unlink()
        key = path.read_bytes().strip()
        Fernet(key)
    except (OSError, ValueError) as error:
        raise SetupError(f"the key of the sessions in {path} cannot be used ({error}); delete it") from None
    return key
