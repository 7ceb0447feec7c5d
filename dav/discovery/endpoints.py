"""The discovery documents as HTTP answers: which address gives which, to whom, in which format."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from dav.discovery import documents
from dav.discovery.documents import Document
from dav.http.errors import HttpError
from dav.http.target import request_path, segments
from dav.webdav.call import Reply

if TYPE_CHECKING:
    from dav.view import View
    from fsd.core.accounts import User

Environ = dict[str, Any]
Public = Callable[[Environ], Reply]
Private = Callable[[Environ, "User", "View"], Reply]
_JSON = "application/json; charset=utf-8"
_OCS = {"/ocs/v1.php/": 1, "/ocs/v2.php/": 2}


def public(environ: Environ) -> Reply | None:
    """The answer for an address that needs no login; None for all others. HttpError 400, 404, 405."""
    path = request_path(environ["REQUEST_URI"])
    handler = _PUBLIC.get(path)
    if handler is None:
        if path.startswith("/.well-known/"):
            raise HttpError(404, "There is nothing here.")
        return None
    _only_read(environ)
    return handler(environ)


def private(environ: Environ) -> Private | None:
    """What answers an address that needs a login; None for what is not discovery."""
    path = request_path(environ["REQUEST_URI"])
    if not path.startswith(("/ocs/", "/graph/")):
        return None
    return _PRIVATE.get(path, _nothing)


def base_url(environ: Environ) -> str:
    """Scheme and host under which the client reaches this server, without a trailing slash."""
    configured: str = environ.get("fsd.public_url", "")
    if configured:
        return configured.rstrip("/")
    host = environ.get("fsd.forwarded_host") or environ.get("HTTP_HOST") or environ["SERVER_NAME"]
    return f"{environ['wsgi.url_scheme']}://{host}"


def _only_read(environ: Environ) -> None:
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        raise HttpError(405, "This can only be read.", headers=(("Allow", "GET, HEAD"),))


def _answer(environ: Environ, body: bytes, content_type: str, status: int = 200) -> Reply:
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
    ]
    return Reply(status, headers, [] if environ["REQUEST_METHOD"] == "HEAD" else [body])


def json_reply(environ: Environ, document: Document, status: int = 200) -> Reply:
    """A document as JSON; without its body for HEAD."""
    return _answer(
        environ, json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"), _JSON, status
    )


def _ocs(environ: Environ, data: Document, status: int = 200) -> Reply:
    """The OCS envelope: version 1 says 100 for success and is always HTTP 200, version 2 repeats the HTTP status."""
    path = request_path(environ["REQUEST_URI"])
    version = next(number for prefix, number in _OCS.items() if path.startswith(prefix))
    good = status < 400
    code = (100 if good else 998) if version == 1 else status
    message = "OK" if good else "Invalid query, please check the syntax."
    meta = {"status": "ok" if good else "failure", "statuscode": code, "message": message}
    whole = {"meta": meta, "data": data}
    http_status = 200 if version == 1 else status
    query = parse_qs(environ.get("QUERY_STRING", ""))
    if query.get("format", ["xml"])[-1].lower() == "json":
        return _answer(environ, json.dumps({"ocs": whole}).encode(), _JSON, http_status)
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<ocs>{_xml(whole)}</ocs>\n'
    body = text.encode("utf-8", "xmlcharrefreplace")
    return _answer(environ, body, "application/xml; charset=utf-8", http_status)


def _xml(value: Any) -> str:
    if isinstance(value, dict):
        return "".join(f"<{key}>{_xml(item)}</{key}>" for key, item in value.items())
    if isinstance(value, list):
        return "".join(f"<element>{_xml(item)}</element>" for item in value)
    if isinstance(value, bool):
        return "1" if value else ""
    return escape(str(value))


def _nothing(environ: Environ, user: User, view: View) -> Reply:
    path = request_path(environ["REQUEST_URI"])
    if path.startswith(tuple(_OCS)):
        # Some clients ask for themselves by name. Of others nothing is told, not even that there are any.
        asked = segments(path)[2:]
        if asked[:2] == [b"cloud", b"users"] and asked[2:] == [user.name.encode()]:
            _only_read(environ)
            return _ocs(environ, documents.ocs_user(user, view))
        return _ocs(environ, {}, 404)
    raise HttpError(404, "There is nothing here.")


def _read(make: Callable[[Environ, User, View], Reply]) -> Private:
    def handler(environ: Environ, user: User, view: View) -> Reply:
        _only_read(environ)
        return make(environ, user, view)

    return handler


def _webfinger(environ: Environ) -> Reply:
    resource = parse_qs(environ.get("QUERY_STRING", "")).get("resource", [""])[0]
    if not resource:
        raise HttpError(400, "The resource is missing from the query.")
    body = json.dumps(documents.webfinger(resource, base_url(environ))).encode()
    return _answer(environ, body, "application/jrd+json; charset=utf-8")


def _redirect_to_dav(environ: Environ) -> Reply:
    """RFC 6764: where the WebDAV collections are."""
    return Reply(301, [("Location", f"{base_url(environ)}/remote.php/dav/"), ("Content-Length", "0")])


def _me(environ: Environ, user: User, view: View) -> Reply:
    return json_reply(environ, documents.me(user))


def _drives(environ: Environ, user: User, view: View) -> Reply:
    return json_reply(environ, {"value": documents.drives(user, view, base_url(environ))})


_PUBLIC: dict[str, Public] = {
    "/status.php": lambda environ: json_reply(environ, documents.status()),
    "/ocs/v1.php/config": lambda environ: _ocs(environ, documents.ocs_config(base_url(environ))),
    "/ocs/v2.php/config": lambda environ: _ocs(environ, documents.ocs_config(base_url(environ))),
    # Nextcloud's clients ask for this to see whether something between answers in the server's place.
    "/index.php/204": lambda environ: Reply(204),
    "/.well-known/webfinger": _webfinger,
    "/.well-known/webdav": _redirect_to_dav,
}
_PRIVATE: dict[str, Private] = {
    "/graph/v1.0/me": _read(_me),
    "/graph/v1.0/me/drives": _read(_drives),
    "/graph/v1.0/drives": _read(_drives),
    "/graph/v1beta1/me/drives": _read(_drives),
    "/graph/v1beta1/drives": _read(_drives),
}
for _version in _OCS:
    _PRIVATE[f"{_version}cloud/capabilities"] = _read(
        lambda environ, user, view: _ocs(environ, documents.capabilities(environ.get("HTTP_USER_AGENT", "")))
    )
    _PRIVATE[f"{_version}cloud/user/signing-key"] = _read(
        lambda environ, user, view: _ocs(
            environ, documents.signing_key(user, environ["fsd.signing_key"](user))
        )
    )
    _PRIVATE[f"{_version}cloud/user"] = _read(
        lambda environ, user, view: _ocs(environ, documents.ocs_user(user, view))
    )
