"""Logging in and out with a form: `/login` and `/logout`. Both work without JavaScript."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

from dav.http.errors import HttpError
from dav.http.target import request_path
from dav.ui import pages
from fsd.service import logs

if TYPE_CHECKING:
    from dav.auth.basic import BasicAuth
    from dav.auth.session import Sessions
    from dav.view import View
    from dav.webdav.call import Reply

LOGIN, LOGOUT = "/login", "/logout"
_LONGEST_FORM = 8192


def is_here(environ: dict[str, Any]) -> bool:
    """Whether a request is about this."""
    return request_path(environ["REQUEST_URI"]) in (LOGIN, LOGOUT)


def address(environ: dict[str, Any]) -> str:
    """The form, and from there back to the page that was asked for."""
    return f"{LOGIN}?next={quote(environ['REQUEST_URI'], safe='/')}"


def answer(environ: dict[str, Any], auth: BasicAuth, sessions: Sessions, view: View) -> Reply:
    """The form; or what comes of it. HttpError 400, 403 (another site's form), 405, 413, 429, 503."""
    method = environ["REQUEST_METHOD"]
    leaving = request_path(environ["REQUEST_URI"]) == LOGOUT
    if method in ("GET", "HEAD") and not leaving:
        query = parse_qs(environ.get("QUERY_STRING", ""))
        return pages.login_page(200, "", _local(query.get("next", ["/"])[-1]), "")
    if method != "POST":
        allowed = "POST" if leaving else "GET, HEAD, POST"
        raise HttpError(405, "Logging in and out is done with a form.", headers=(("Allow", allowed),))
    _refuse_other_sites(environ)
    if leaving:
        return _to(LOGIN, sessions.end(environ))
    form = _form(environ)
    name, onward = form.get("user", ""), _local(form.get("next", "/"))
    told = base64.b64encode(f"{name}:{form.get('password', '')}".encode("utf-8", "surrogateescape")).decode()
    try:
        if ":" in name:
            raise HttpError(401, "The user name or password is wrong.")
        user = auth({**environ, "HTTP_AUTHORIZATION": f"Basic {told}"}, view)
    except HttpError as error:
        if error.status != 401:
            raise
        # No challenge: the browser's own dialog would come up over the form.
        return pages.login_page(403, "The user name or password is wrong.", onward, name)
    logs.audit(user.name, "login", LOGIN, outcome="ok", address=str(environ.get("REMOTE_ADDR", "")))
    return _to(onward, sessions.begin(environ, user))


def _to(where: str, cookie: tuple[str, str]) -> Reply:
    from dav.webdav.call import Reply

    return Reply(303, [("Location", where), cookie, ("Cache-Control", "no-store"), ("Content-Length", "0")])


def _refuse_other_sites(environ: dict[str, Any]) -> None:
    host = environ.get("fsd.forwarded_host") or environ.get("HTTP_HOST", "")
    known = {host, environ.get("fsd.public_host", "")} - {""}
    origin = environ.get("HTTP_ORIGIN", "")
    if origin and urlsplit(origin).netloc not in known:
        raise HttpError(403, "This form was sent by another site.")
    if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") not in ("same-origin", "none"):
        raise HttpError(403, "This form was sent by another site.")


def _form(environ: dict[str, Any]) -> dict[str, str]:
    if (
        environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        != "application/x-www-form-urlencoded"
    ):
        raise HttpError(415, "A login is a form: user and password.")
    body: bytes = environ["wsgi.input"].read(_LONGEST_FORM + 1)
    if len(body) > _LONGEST_FORM:
        raise HttpError(413, "The form is too long.")
    try:
        found = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=10)
    except ValueError:
        raise HttpError(400, "The form is malformed.") from None
    return {key: values[-1] for key, values in found.items()}


def _local(path: str) -> str:
    """A page of this server; the first one for everything else (open redirects)."""
    fine = path.startswith("/") and not path.startswith("//") and path.isprintable() and path.isascii()
    return path if fine and "\\" not in path else "/"
