"""The web application: who may ask, how much, and how errors look.

To a browser that opens a page, an error is a page. Every other one is `{"error": {"type": …, "message": …}}`, and its
sentence stands in the HTTP status line too: that line is all that Label Studio shows a person of an ML backend that
refuses. What went wrong inside stays in the log, under the id that the answer gives.
"""

from __future__ import annotations

import logging
import re
import time
import uuid

from flask import Flask, Response, g, jsonify, redirect, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import Forbidden, HTTPException

from backend import access, api, contract, pages, search, sheets
from backend import map as map_page
from backend.metrics import Metrics
from backend.services import open_services
from lookalike.errors import (
    LabelConfigError,
    LabelStudioError,
    LabelStudioNotFound,
    LabelStudioRefused,
    LabelStudioUnreachable,
    RequestError,
    StoreError,
)
from lookalike.settings import Settings

log = logging.getLogger("lookalike.backend")

#: Label Studio sends tasks 5,000 at a time, 2.6 MB of them with nothing but an address in their data, and sends all the
#: selected tasks of a project in one /predict
_MAX_BULK_BYTES = 64_000_000
_BULK = ("/predict", "/webhook")
_MAX_BYTES = 4_000_000
_RETRY_AFTER_S = "10"
_LONGEST_REASON = 300

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
#: pages take scripts, styles and pictures from us and nowhere else, and nothing that stands in the page itself
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers hide the origin of our own forms from us
}
#: the first that fits
_STATUS_OF = {
    RequestError: 400,
    LabelConfigError: 422,
    StoreError: 503,
    LabelStudioRefused: 403,
    LabelStudioNotFound: 404,
    LabelStudioUnreachable: 503,
    LabelStudioError: 502,
}


def create_app(settings: Settings) -> Flask:
    """The backend as a WSGI application. Opens the ledger; the queue server need not be there.

    Raises SettingsError, or StoreError where the ledger cannot be opened.
    """
    services = open_services(settings)
    metrics = Metrics(services.store, services.queue)
    app = Flask("lookalike", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = _MAX_BYTES
    app.extensions["lookalike"] = services
    app.extensions["lookalike_access"] = here = access.Access(services)
    # what is said to a person after a redirect is signed; cookies know hosts, not ports
    app.config["SECRET_KEY"] = here.sign_ins.secret
    app.config["SESSION_COOKIE_NAME"] = f"{here.cookie}-said"
    app.config["SESSION_COOKIE_SAMESITE"] = "Lax"
    app.config["SESSION_COOKIE_SECURE"] = settings.public_url.startswith("https:")
    logins = access.encoded_logins(settings)

    @app.before_request
    def admit() -> ResponseReturnValue | None:
        g.started = time.perf_counter()
        if request.path in _BULK:
            request.max_content_length = _MAX_BULK_BYTES
        if request.path == "/" and access.wants_page():
            return redirect(url_for("pages.projects"))
        is_ours = request.blueprint != "contract" if request.url_rule else access.wants_page()
        if is_ours:
            return access.admit()
        # without a login, any page that somebody on this machine has open could forge a webhook
        if request.method == "POST" and ("Origin" in request.headers or "Sec-Fetch-Site" in request.headers):
            raise Forbidden("Label Studio and programs ask here, never a page in a browser; nothing was changed")
        # /health is open for whoever starts and watches us. A wrong login is still told there, because Label Studio
        # then says in plain words that the login is wrong, which it does for no other route.
        if request.path == "/health" and "Authorization" not in request.headers:
            return None
        if logins and not here.guesses.is_right(request.headers.get("Authorization", ""), logins):
            answer = _error(401, "Unauthorized", "give the user name and password of this ML backend")
            answer.headers["WWW-Authenticate"] = 'Basic realm="lookalike", charset="UTF-8"'
            return answer
        return None

    @app.after_request
    def finish(answer: Response) -> Response:
        for name, value in (_PAGE_HEADERS if answer.mimetype == "text/html" else {}).items():
            answer.headers.setdefault(name, value)
        for name, value in _HEADERS.items():
            answer.headers.setdefault(name, value)
        route = request.url_rule.rule if request.url_rule else "unknown"
        seconds = time.perf_counter() - g.started
        metrics.answered(route, answer.status_code, seconds)
        # the rule, not the path: a path is what anybody writes into it
        log.info("%s %s %d %.0f ms", request.method, route, answer.status_code, seconds * 1000)
        return answer

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        if error.response is not None:
            return error.response  # type: ignore[return-value]
        answer = _error(error.code or 500, type(error).__name__, error.description or error.name)
        for name, value in error.get_headers(request.environ):
            if name in ("Allow", "Retry-After"):
                answer.headers[name] = value
        return answer

    @app.errorhandler(UnicodeEncodeError)
    def unreadable(_error_: UnicodeEncodeError) -> Response:
        return _error(400, "RequestError", "the body has text that is no Unicode: half a surrogate pair")

    @app.errorhandler(OverflowError)
    def too_large(_error_: OverflowError) -> Response:
        return _error(400, "RequestError", "a number in the request is larger than any that there is here")

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        for kind, code in _STATUS_OF.items():
            if isinstance(error, kind):
                answer = _error(code, type(error).__name__, str(error))
                if code == 503:
                    answer.headers["Retry-After"] = _RETRY_AFTER_S
                return answer
        number = uuid.uuid4().hex[:12]
        log.error("error %s in %s", number, request.url_rule, exc_info=error)
        return _error(500, "InternalError", f"an error that we did not foresee; the log has it under {number}", number)

    app.register_blueprint(contract.blueprint(services, metrics))
    app.register_blueprint(access.blueprint())
    app.register_blueprint(api.blueprint())
    app.register_blueprint(pages.blueprint())
    app.register_blueprint(map_page.blueprint())
    app.register_blueprint(sheets.blueprint())
    app.register_blueprint(search.blueprint())
    return app


def _error(code: int, kind: str, message: str, number: str = "") -> Response:
    if access.wants_page():
        return pages.error_page(code, message)
    answer = jsonify(error={"type": kind, "message": message} | ({"id": number} if number else {}))
    # printable ASCII, and no markup: Label Studio shows the line within HTML
    answer.status = f"{code} {re.sub('[^ -;=?-~]+', ' ', message)[:_LONGEST_REASON]}"
    return answer
