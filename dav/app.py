"""The WSGI application: proxies, request id, authentication, routing, one reply, one audit line."""

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dav.auth.basic import BasicAuth
from dav.auth.forwarded import TrustedProxies
from dav.http.errors import HttpError, from_os_error
from dav.routes import Place, Router
from dav.ui import pages
from dav.view import Views
from dav.webdav.call import Call, Reply, error_reply
from dav.webdav.provider import Provider, Requests
from fsd.core.names import to_text
from fsd.core.registry import Registry
from fsd.service import logs, metrics

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_AUDITED = frozenset({"GET", "PUT", "DELETE", "MKCOL", "COPY", "MOVE", "PROPPATCH", "LOCK", "UNLOCK"})


@dataclass(frozen=True, slots=True)
class Options:
    """``max_body``: largest upload in bytes; ``public_url``: how clients address this server, if otherwise."""

    max_body: int | None = None
    public_url: str = ""


class App:
    """Everything between the server and the core.  Thread-safe."""

    def __init__(
        self, registry: Registry, auth: BasicAuth, proxies: TrustedProxies, options: Options | None = None
    ) -> None:
        options = options or Options()
        self._extra = {
            "fsd.max_body": options.max_body,
            "fsd.public_host": urlsplit(options.public_url).netloc,
        }
        self.registry = registry
        self.views = Views(registry)
        self._auth = auth
        self._proxies = proxies
        self._requests = Requests(Provider())

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        began = time.perf_counter()
        self._proxies.apply(environ)
        environ.update(self._extra)
        sent = environ.get("HTTP_X_REQUEST_ID", "")
        ident = sent if _REQUEST_ID.match(sent) else secrets.token_hex(8)
        with logs.request(ident):
            reply = self._reply(environ)
            if environ.get("wsgi.url_scheme") == "https":
                reply.headers.append(("Strict-Transport-Security", "max-age=31536000"))
            reply.headers.append(("X-Request-ID", ident))
            metrics.observe_request(environ["REQUEST_METHOD"], reply.status, time.perf_counter() - began)
            start_response(reply.line, reply.headers)
            return reply.body

    def _reply(self, environ: dict[str, Any]) -> Reply:
        reply: Reply
        try:
            if environ["REQUEST_URI"] == "*":
                return Reply(200, [("DAV", "1, 2, 3"), ("MS-Author-Via", "DAV"), ("Content-Length", "0")])
            view = self.views.current()
            user = self._auth(environ, view)
            call = Call(environ, user, Router(view))
        except HttpError as error:
            return self._refusal(environ, error)
        except OSError as error:
            answer = from_os_error(error)
            if answer.status == 500:
                log.exception("request failed")
            return self._refusal(environ, answer)
        reply = self._requests.reply(call)
        if reply.status >= 400 and pages.wants_page(environ):
            reply = pages.error_page(reply)
        if call.method in _AUDITED:
            _audit(call, reply)
        return reply

    def _refusal(self, environ: dict[str, Any], error: HttpError) -> Reply:
        reply = error_reply(error)
        return pages.error_page(reply, error.sentence) if pages.wants_page(environ) else reply


def _audit(call: Call, reply: Reply) -> None:
    fields: dict[str, Any] = {"address": call.environ["REMOTE_ADDR"], "status": reply.status}
    target = call.uri
    if isinstance(call.target, Place):
        fields["space"] = call.target.record.id
        target = "/" + to_text(call.target.path)
    if "HTTP_DESTINATION" in call.environ:
        fields["destination"] = call.environ["HTTP_DESTINATION"]
    outcome = "ok" if reply.status < 400 else "refused"
    logs.audit(call.user.name, call.method, target, outcome=outcome, **fields)
