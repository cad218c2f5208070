"""Who asks, and what they may see.

A browser signs in at /login, with a Label Studio token or with the login of the ML backend, and from then on sends a
cookie that only we can read (`lookalike.sign_in`). A program sends `Authorization: Token …` or `Bearer …` with a Label
Studio token, or the backend's login as `Basic …`, each time.

Nothing here is open unless it says so: every route but Label Studio's own (`backend.contract`) and the few in _OPEN
needs a person, and every request that changes something must come from our own pages. Who may see a project is Label
Studio's to say; its answer is believed for _BELIEVED_S.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import hmac
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from flask import Blueprint, Response, abort, current_app, g, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import Forbidden, TooManyRequests

from backend.services import Services
from lookalike import wire
from lookalike.errors import LabelStudioError, LabelStudioNotFound, LabelStudioRefused, LabelStudioUnreachable
from lookalike.label_studio import LabelStudio
from lookalike.settings import Settings
from lookalike.sign_in import SESSION_S, SignIns
from lookalike.store import Project
from lookalike.views import Views

#: who was shut out at Label Studio is shut out here this much later at most
_BELIEVED_S = 60.0
#: how much is remembered: (person, project) pairs, and people
_MOST_REMEMBERED = 10_000
_LABEL_STUDIO_WITHIN_S = 10.0
#: wrong logins and tokens from one address within a minute, after which none is looked at
_GUESSES = 30
_GUESSES_WITHIN_S = 60.0
_SAFE = ("GET", "HEAD", "OPTIONS")
#: what is answered without a sign-in; the contract's routes have rules of their own, see `admit`
_OPEN = ("access.login", "access.use_address", "pages.static")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Person:
    """Whoever asks."""

    name: str  # as Label Studio shows it, or the backend's login
    label_studio_token: str = field(default="", repr=False)  # "" for the backend's login: may look, not label
    csrf: str = field(default="", repr=False)  # what our forms and scripts send back; "" without a cookie

    @property
    def key(self) -> str:
        """Tells people apart in what we remember, without their tokens."""
        return hashlib.sha256(self.label_studio_token.encode()).hexdigest() if self.label_studio_token else ""


class Access:
    """One application's knowledge of people, shared by its threads."""

    def __init__(self, services: Services) -> None:
        self.settings = services.settings
        self.store = services.store
        self.views = Views(services.store.engine)
        self.sign_ins = SignIns(services.settings.data_dir, services.store.engine)
        self.logins = encoded_logins(services.settings)
        #: of the login in a session: with another password, who signed in by the one before is signed out
        self.login_mark = hmac.digest(self.sign_ins.secret, b"login" + b"".join(self.logins[:1]), "sha256").hex()
        self.guesses = _Guesses()
        self.cookie = f"lookalike-{services.settings.port}"  # cookies know hosts, not ports
        self._people: _Remembered[Person] = _Remembered(_BELIEVED_S)
        self._studios: _Remembered[LabelStudio] = _Remembered(3600.0)
        self._projects: _Remembered[str] = _Remembered(_BELIEVED_S)
        self._lists: _Remembered[list[Project]] = _Remembered(_BELIEVED_S / 2)

    # who

    def person_of(self, token: str) -> Person:
        """Whose Label Studio token this is. Raises LabelStudioRefused, or LabelStudioUnreachable."""
        key = hashlib.sha256(token.encode()).hexdigest()

        def ask() -> Person:
            found = self.studio(token).whoami()
            return Person(str(found.get("email") or found.get("username") or "somebody"), token)

        return self._people.get(key, ask)

    def studio(self, token: str) -> LabelStudio:
        if not self.settings.label_studio_url:
            raise LabelStudioRefused(
                "LOOKALIKE_LABEL_STUDIO_URL is not set, so no token can be checked; set it and start again"
            )
        key = hashlib.sha256(token.encode()).hexdigest()
        make = functools.partial(
            LabelStudio, self.settings.label_studio_url, token, timeout=_LABEL_STUDIO_WITHIN_S, tries=1
        )
        return self._studios.get(key, make)

    # what

    def uid(self, who: Person, label_studio_id: int) -> str:
        """The project's uid if this person may see it, else "". Raises LabelStudioUnreachable."""

        def ask() -> str:
            known = {p.uid for p in self.store.projects() if p.label_studio_id == label_studio_id}
            if not known:
                return ""
            if not who.label_studio_token:
                return max(known, key=lambda uid: float(uid.split(".")[-1]))  # ids are used again: the youngest
            try:
                found = self.studio(who.label_studio_token).project(label_studio_id)
            except LabelStudioNotFound:
                return ""
            except LabelStudioRefused:
                self.person_of(who.label_studio_token)  # raises where the token is at fault, not the project
                return ""
            uid = wire.project_uid(found["id"], found["created_at"])
            return uid if uid in known else ""

        return self._projects.get(f"{who.key} {label_studio_id}", ask)

    def projects(self, who: Person) -> list[Project]:
        """The projects of videos that this person may see, oldest first."""

        def ask() -> list[Project]:
            known = self.store.projects()
            if not who.label_studio_token:
                youngest = {project.label_studio_id: project.uid for project in known}
                return [project for project in known if youngest[project.label_studio_id] == project.uid]
            seen = self.studio(who.label_studio_token).projects()
            uids = {wire.project_uid(row["id"], row["created_at"]) for row in seen}
            return [project for project in known if project.uid in uids]

        return self._lists.get(who.key, ask)


# --- for views ---


def person() -> Person:
    """Who asks. Ends the request where nobody is signed in: pages go to /login, everything else answers 401."""
    found: Person | None = g.get("person")
    if found is None:
        found = g.person = _find_person()
    return found


def require_project(label_studio_id: int) -> str:
    """The uid of Label Studio's project, if the person may see it there; 404 if not, as if there were none."""
    uid = access().uid(person(), label_studio_id)
    if not uid:
        abort(404, f"there is no project {label_studio_id} here; see the projects that you have at /projects")
    return uid


def studio() -> LabelStudio:
    """Label Studio as the person who asks, for writing in their name. Ends the request with 403 where that cannot be:
    the ML backend's login is nobody at Label Studio."""
    token = person().label_studio_token
    if not token:
        abort(403, "you are signed in with the ML backend's login, which may look but not label; sign out, and sign in "
              "with your Label Studio token")  # fmt: skip
    return access().studio(token)


def access() -> Access:
    found: Access = current_app.extensions["lookalike_access"]
    return found


# --- for the application ---


def admit() -> ResponseReturnValue | None:
    """Before each request but the contract's: somebody is signed in, and what changes something comes from our pages.

    None to go on. Label Studio's routes, and unknown ones, are none of this function's business.
    """
    if request.method not in _SAFE:
        _require_own_origin()
    if request.endpoint in _OPEN:
        return None
    who = person()
    if request.method not in _SAFE and who.csrf:
        given = request.headers.get("X-CSRF-Token") or request.form.get("csrf", "")
        if not hmac.compare_digest(given.encode(), who.csrf.encode()):
            raise Forbidden("this page is older than your sign-in; load it anew and do that again")
    return None


def encoded_logins(settings: Settings) -> list[bytes]:
    """The login as clients encode it: curl in UTF-8, Label Studio in Latin-1. None: everybody is welcome."""
    if not settings.basic_auth_user:
        return []
    login = f"{settings.basic_auth_user}:{settings.basic_auth_pass}"
    logins = [login.encode()]
    with contextlib.suppress(UnicodeEncodeError):
        logins.append(login.encode("latin-1"))
    return logins


def is_welcome(header: str, logins: list[bytes]) -> bool:
    """Whether an Authorization header, of any form, gives a login. Takes as long for a near miss as for nonsense."""
    scheme, _, encoded = header.partition(" ")
    given = b""
    if scheme.lower() == "basic":
        with contextlib.suppress(binascii.Error, ValueError):
            given = base64.b64decode(encoded.strip(), validate=True)
    return sum(hmac.compare_digest(given, login) for login in logins) > 0


# --- the routes ---


def blueprint() -> Blueprint:
    """GET and POST /login, GET /login/<address>, POST /logout."""
    routes = Blueprint("access", __name__, template_folder="templates")

    @routes.route("/login", methods=["GET", "POST"])
    def login() -> ResponseReturnValue:
        if request.method == "GET":
            return _login_page("")
        here, token = access(), request.form.get("token", "").strip()
        here.guesses.check()
        try:
            if token:
                return _signed_in(here.person_of(token), _next())
        except LabelStudioUnreachable as error:
            return _login_page(str(error), 503)
        except LabelStudioError as error:
            here.guesses.note()
            return _login_page(_why_refused(error), 401)
        user, password = request.form.get("user", ""), request.form.get("password", "")
        given = base64.b64encode(f"{user}:{password}".encode(errors="replace")).decode()
        if here.logins and here.guesses.is_right(f"Basic {given}" if user else "", here.logins):
            return _signed_in(Person(user), _next())
        wanted = "a token, or the user name and password of the ML backend" if here.logins else "a Label Studio token"
        return _login_page("That is not the login of this ML backend." if user else f"Give {wanted}.", 401)

    @routes.get("/login/<address>")
    def use_address(address: str) -> ResponseReturnValue:
        here = access()
        # a proxy on this machine would make everybody look local
        by_proxy = any(name in request.headers for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"))
        local = request.remote_addr in ("127.0.0.1", "::1") and not by_proxy
        if not (local and here.settings.is_on_loopback and here.sign_ins.redeem(address)):
            if _of_session() is not None:  # the address was opened before, as a rule by this very browser
                return redirect(url_for("pages.projects"))
            return _login_page(
                "That address does not sign in any more: each does so once, within the hour, on its own machine. "
                "`lookalike sign-in` prints a new one.",
                401,
            )
        try:
            return _signed_in(here.person_of(here.settings.label_studio_token), url_for("pages.projects"))
        except LabelStudioError as error:
            return _login_page(str(error), 503)

    @routes.post("/logout")
    def logout() -> ResponseReturnValue:
        here = access()
        session = here.sign_ins.open(request.cookies.get(here.cookie, ""))
        if session is not None:
            here.sign_ins.end(session)
        answer = redirect(url_for("access.login"))
        answer.delete_cookie(here.cookie)
        return answer

    return routes


# --- steps ---


def _find_person() -> Person:
    here = access()
    if (who := _of_session()) is not None:
        return who
    header = request.headers.get("Authorization", "")
    scheme, _, token = header.partition(" ")
    if scheme.lower() in ("token", "bearer") and token:
        here.guesses.check()
        try:
            return here.person_of(token.strip())
        except LabelStudioUnreachable:
            raise
        except LabelStudioError as error:
            here.guesses.note()
            abort(401, _why_refused(error))
    if here.logins and here.guesses.is_right(header, here.logins):
        return Person(here.settings.basic_auth_user)
    if wants_page() and request.method in _SAFE:
        abort(redirect(url_for("access.login", next=request.full_path.rstrip("?"))))
    abort(401, "sign in at /login, or send Authorization: Token <your Label Studio token>")


def _of_session() -> Person | None:
    """Who is signed in by the cookie."""
    here = access()
    if text := request.cookies.get(here.cookie):
        content = here.sign_ins.open(text)
        if content is not None and (content["token"] or content.get("login") == here.login_mark):
            return Person(content["name"], content["token"], content["csrf"])
    return None


def wants_page() -> bool:
    """Whether the answer is for a person's eyes: a browser that opens a page, not a script or a program."""
    return "text/html" in request.headers.get("Accept", "") and not request.path.startswith("/api/")


def _require_own_origin() -> None:
    """Refuse what another site's page makes a browser send. Programs send neither header."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    # the origin of a sandboxed page is "null", which has no host at all
    ours = {request.host, urlsplit(access().settings.public_url).netloc} - {""}
    if site not in (None, "same-origin", "none") or (origin is not None and urlsplit(origin).netloc not in ours):
        raise Forbidden("this request comes from another site's page; nothing was changed")


def _signed_in(who: Person, then: str) -> Response:
    here = access()
    content = {"name": who.name, "token": who.label_studio_token, "csrf": secrets.token_urlsafe(16)}
    if not who.label_studio_token:
        content["login"] = here.login_mark
    answer = redirect(then, 303)
    answer.set_cookie(
        here.cookie,
        here.sign_ins.seal(content, SESSION_S),
        max_age=int(SESSION_S),
        httponly=True,
        samesite="Lax",
        secure=request.is_secure or here.settings.public_url.startswith("https:"),
    )
    assert isinstance(answer, Response)
    return answer


def _login_page(problem: str, status: int = 200) -> ResponseReturnValue:
    here = access()
    page = render_template(
        "login.html",
        problem=problem,
        next=_next(),
        label_studio_url=here.settings.label_studio_url,
        with_login=bool(here.logins),
        with_address=here.settings.is_on_loopback,
    )
    return page, status


def _next() -> str:
    """Where the person wanted to go; never to another site."""
    wanted = request.values.get("next", "")
    local = wanted.startswith("/") and not wanted.startswith(("//", "/\\", "/login")) and wanted.isprintable()
    return wanted if local else url_for("pages.projects")


def _why_refused(error: LabelStudioError) -> str:
    if "legacy" in str(error):
        return "Legacy tokens are switched off at Label Studio; make a personal access token there, and use that."
    if isinstance(error, LabelStudioRefused):
        return "Label Studio does not accept this token; copy it again, or make a new one under Account & Settings."
    return str(error)


class _Guesses:
    """Wrong logins and tokens, by the address that they came from: nobody tries passwords by the thousand."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wrong: dict[str, deque[float]] = {}

    def is_right(self, header: str, logins: list[bytes]) -> bool:
        """As `is_welcome`; a wrong one is noted. Ends the request with 429 where there were too many."""
        if not header:
            return False
        self.check()
        right = is_welcome(header, logins)
        if not right:
            self.note()
        return right

    def check(self) -> None:
        with self._lock:
            wrong = self._wrong.get(request.remote_addr or "", deque[float]())
            if len(wrong) == _GUESSES and time.monotonic() - wrong[0] < _GUESSES_WITHIN_S:
                raise TooManyRequests(
                    f"more than {_GUESSES} wrong logins came from your address within a minute; try again in one",
                    retry_after=int(_GUESSES_WITHIN_S),
                )

    def note(self) -> None:
        with self._lock:
            if len(self._wrong) >= _MOST_REMEMBERED:
                self._wrong.clear()
            self._wrong.setdefault(request.remote_addr or "", deque(maxlen=_GUESSES)).append(time.monotonic())


class _Remembered(Generic[T]):
    """Answers by key, each for a while. Two who ask for the same at once may both find out."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, T]] = {}

    def get(self, key: str, find_out: Callable[[], T]) -> T:
        """What is known, or found out now; what `find_out` raises is not remembered."""
        with self._lock:
            known = self._known.get(key)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        found = find_out()
        with self._lock:
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[key] = (time.monotonic() + self._seconds, found)
        return found
