"""The WSGI application: proxies, request id, authentication, routing, one reply, one audit line."""

import itertools
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dav import events, forward, links
from dav.auth.basic import BasicAuth
from dav.auth.forwarded import TrustedProxies
from dav.auth.session import Sessions
from dav.auth.signed import SignedUrls
from dav.discovery import endpoints
from dav.graph import endpoint as graph
from dav.http import limits
from dav.http.errors import HttpError, from_os_error
from dav.http.failures import Malformed
from dav.http.target import request_path
from dav.routes import Place, Router, Virtual
from dav.ui import login, pages
from dav.uploads import chunks, tus
from dav.view import View, Views
from dav.webdav import archive, meta, trashbin
from dav.webdav.call import Body, Call, Reply, error_reply
from dav.webdav.provider import Provider, Requests, refused
from fsd.core import steps
from fsd.core.accounts import User
from fsd.core.arrivals import Outcome
from fsd.core.names import to_text
from fsd.core.registry import Registry
from fsd.core.steps import Need, Steps
from fsd.service import logs, metrics

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_QUICK = frozenset({"GET", "HEAD", "OPTIONS", "PROPFIND", "PUT"})
"""What computes for a moment; a PUT waits for the disk where the core says so."""
_LISTED = frozenset({"HEAD", "PROPFIND", "REPORT"})
_AUDITED = frozenset({"GET", "PUT", "DELETE", "MKCOL", "COPY", "MOVE", "PROPPATCH", "LOCK", "UNLOCK"})


@dataclass(frozen=True, slots=True)
class Options:
    """``max_body``: largest upload in bytes; ``public_url``: how clients address this server, if otherwise;
    ``fast``: whether what was made once may be used again; ``listeners``: most event streams of a user, 0: any;
    ``durable``: whether a PUT is fsynced."""

    max_body: int | None = None
    public_url: str = ""
    fast: bool = True
    listeners: int = 0
    durable: bool = True


_Beside = Callable[[dict[str, Any], User, View], Reply | tuple[Call, Body]]
_BESIDE: tuple[tuple[Callable[[str], bool], _Beside], ...] = (
    (trashbin.is_here, trashbin.answer),
    (chunks.is_here, chunks.answer),
    (tus.is_here, tus.answer),
    (meta.is_here, meta.answer),
    (archive.is_here, archive.answer),
    (graph.is_here, graph.answer),
)


class App:
    """Everything between the server and the core.  Thread-safe."""

    def __init__(
        self, registry: Registry, auth: BasicAuth, proxies: TrustedProxies, options: Options | None = None
    ) -> None:
        options = options or Options()
        self._extra: dict[str, Any] = {
            "fsd.max_body": options.max_body,
            "fsd.fast": options.fast,
            "fsd.durable": options.durable,
            "fsd.public_host": urlsplit(options.public_url).netloc,
            "fsd.public_url": options.public_url,
        }
        self.registry = registry
        self.views = Views(registry)
        self.events = events.Hub(self.views, options.listeners)
        self._auth = auth
        self._signed = SignedUrls(lambda: registry.installation.key, auth.throttle)
        self._sessions = Sessions(lambda: registry.installation.key)
        self._extra["fsd.signing_key"] = self._signed.key
        self._extra["fsd.sign"] = self._signed.sign
        self._links = links.PublicLinks(auth.throttle)
        self._proxies = proxies
        self._requests = Requests(Provider())

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI (PEP 3333), for servers that know nothing else."""
        found = self.answer(environ)
        reply = _fed(found, environ) if isinstance(found, Receiving) else found
        told = reply.status in (204, 304) or any(name == "Content-Length" for name, _ in reply.headers)
        if not told and isinstance(reply.body, (list, tuple)):
            reply.headers.append(("Content-Length", str(sum(map(len, reply.body)))))
        start_response(reply.line, reply.headers)
        return reply.body

    def answer(self, environ: dict[str, Any]) -> "Reply | Receiving":
        """The reply, or an upload that was agreed to and whose bytes the server is to bring."""
        began = time.perf_counter()
        self._proxies.apply(environ)
        environ.update(self._extra)
        sent = environ.get("HTTP_X_REQUEST_ID")
        ident = sent if sent and _REQUEST_ID.match(sent) else _fresh_id()
        token = logs.request_id.set(ident)
        try:
            found = self._answer(environ)
            if isinstance(found, tuple):
                return Receiving(self, found[0], found[1], ident, began)
            return self.done(environ, found, ident, began)
        finally:
            logs.request_id.reset(token)

    def done(self, environ: dict[str, Any], reply: Reply, ident: str, began: float) -> Reply:
        """Complete a reply and count it."""
        if environ.get("wsgi.url_scheme") == "https":
            reply.headers.append(("Strict-Transport-Security", "max-age=31536000"))
        if "fsd.session" in environ:
            # What credentials in a header do by themselves (RFC 9111 section 3.5): no cache that others share keeps it.
            reply.headers.append(("Vary", "Cookie"))
            if not any(name == "Cache-Control" for name, _ in reply.headers):
                reply.headers.append(("Cache-Control", "private, no-cache"))
        reply.headers.append(("X-Request-ID", ident))
        metrics.observe_request(environ["REQUEST_METHOD"], reply.status, time.perf_counter() - began)
        return reply

    def _answer(self, environ: dict[str, Any]) -> Reply | tuple[Call, Body]:
        try:
            if environ["REQUEST_URI"] == "*":
                return Reply(200, [("DAV", "1, 2, 3"), ("MS-Author-Via", "DAV"), ("Content-Length", "0")])
            if (open_to_all := endpoints.public(environ)) is not None:
                return open_to_all
            view = self.views.current()
            if links.is_here(environ["REQUEST_URI"]):
                return self._of_the_tree(self._links.call(environ, view))
            if login.is_here(environ):
                return login.answer(environ, self._auth, self._sessions, view)
            user = self._user(environ, view)
            if (beside := self._beside_the_tree(environ)) is not None:
                if beside != self.events.reply:
                    _may_block(environ)
                if (holder := forward.beside(environ, user, view)) is not None:
                    nowhere = Virtual((), request_path(environ["REQUEST_URI"]), False, [])
                    return self._pass_on(Call(environ, user, Router(view), nowhere), holder)
                return beside(environ, user, view)
            return self._of_the_tree(Call(environ, user, Router(view)))
        except (HttpError, OSError) as error:
            return self._refusal(environ, error)

    def _user(self, environ: dict[str, Any], view: View) -> User:
        """Who asks. HttpError 401, 429, 503."""
        if self._signed.claimed(environ):
            return self._signed.user(environ, view)
        if self._sessions.claimed(environ):
            user = self._sessions.user(environ, view)
            if user is not None:
                environ["fsd.session"] = True
                return user
            if pages.wants_page(environ):
                # It has ended: whoever logged in with the form is to see the form, not the browser's dialog.
                raise HttpError(303, "Log in, please.", headers=(("Location", login.address(environ)),))
        return self._auth(environ, view)

    def _of_the_tree(self, call: Call) -> Reply | tuple[Call, Body]:
        """The answer of its method. HttpError, OSError of passing it on."""
        if (holder := forward.elsewhere(call)) is not None:
            return self._pass_on(call, holder)
        if call.method not in _QUICK:
            _may_block(call.environ)
        found = self._requests.reply(call)
        if not isinstance(found, Reply):
            return call, found
        return self.settled(call, found)

    def _pass_on(self, call: Call, holder: forward.Holder) -> Reply | tuple[Call, Body]:
        """Have the host answer that works on the space."""
        _may_block(call.environ)
        passed = forward.begin(call, holder)
        return passed if isinstance(passed, Reply) else (call, passed)

    def _beside_the_tree(self, environ: dict[str, Any]) -> _Beside | None:
        """What answers addresses that are not places in a space."""
        path = request_path(environ["REQUEST_URI"])
        for is_here, answer in _BESIDE:
            if is_here(path):
                return answer
        if path == events.PATH or path in events.OWNCLOUD_PATHS:
            return self.events.reply
        return endpoints.private(environ)

    def steps(self, call: Call, incoming: Body) -> Steps[Reply]:
        """All bytes of an upload are here."""
        reply = yield from self._requests.steps(call, incoming)
        return self.settled(call, reply)

    def settled(self, call: Call, reply: Reply) -> Reply:
        """A page for browsers, a line for the audit."""
        if reply.status >= 400 and pages.wants_page(call.environ):
            reply = pages.error_page(reply)
        if call.method in _AUDITED:
            _audit(call, reply)
        elif call.method in _LISTED:
            fields, target, outcome = _told(call, reply)
            if "HTTP_DEPTH" in call.environ:
                fields["depth"] = call.environ["HTTP_DEPTH"]
            logs.access(call.user.name, call.method, target, outcome=outcome, **fields)
        return reply

    def _refusal(self, environ: dict[str, Any], error: HttpError | OSError) -> Reply:
        if isinstance(error, OSError):
            answer = from_os_error(error)
            if answer.status == 500:
                log.error("request failed", exc_info=error)
            error = answer
        if environ["REQUEST_URI"].startswith("/graph/"):
            return graph.error_reply(environ, error)
        if error.status in (303, 304):
            return Reply(error.status, list(error.headers))
        reply = error_reply(error)
        return pages.error_page(reply, error.sentence) if pages.wants_page(environ) else reply


class Receiving:
    """An upload on its way through the application: request id, answer, audit and count belong to it."""

    def __init__(self, app: App, call: Call, incoming: Body, ident: str, began: float) -> None:
        self._app = app
        self._call = call
        self._incoming = incoming
        self._ident = ident
        self._began = began
        self._steps: Steps[Reply] | None = None
        self.feed = incoming.feed

    def finish(self) -> Reply:
        """All bytes were fed."""
        found = self.begin_finish()
        while isinstance(found, Need):
            found = self.go_on(steps.serve([found])[0])
        return found

    def begin_finish(self) -> Reply | Need:
        """`finish`, or up to where it needs something (`steps.serve`): `go_on` then."""
        with logs.request(self._ident):
            self._steps = self._app.steps(self._call, self._incoming)
            try:
                return next(self._steps)
            except StopIteration as end:
                return self._done(end.value)

    def go_on(self, outcome: Outcome) -> Reply | Need:
        """Go on with what came of it."""
        assert self._steps is not None
        with logs.request(self._ident):
            try:
                return steps.resume(self._steps, outcome)
            except StopIteration as end:
                return self._done(end.value)

    def fail(self, error: Exception) -> Reply:
        """It ends here: the answer for an error of the protocol or the core; raises what is none."""
        self.abort()
        if not isinstance(error, (HttpError, OSError)):
            raise error
        with logs.request(self._ident):
            return self._done(self._app.settled(self._call, refused(error, self._call)))

    def abort(self) -> None:
        """The client is gone, or the upload failed: nothing is left of it."""
        self._incoming.abort()

    def _done(self, reply: Reply) -> Reply:
        return self._app.done(self._call.environ, reply, self._ident, self._began)


def _fed(receiving: Receiving, environ: dict[str, Any]) -> Reply:
    """Bring the body of a plain WSGI server, which waits for it."""
    read = environ["wsgi.input"].read
    length = environ.get("CONTENT_LENGTH")
    left = None if length is None else int(length)
    try:
        while left is None or left:
            data = read(limits.BLOCK if left is None else min(limits.BLOCK, left))
            if not data:
                break
            receiving.feed(memoryview(data))
            left = None if left is None else left - len(data)
        return receiving.finish()
    except (HttpError, OSError, ValueError) as error:
        return receiving.fail(Malformed(str(error)) if isinstance(error, ValueError) else error)


_prefix = ""
_count = itertools.count()


def _fresh_id() -> str:
    """Unlike any other: a random part for each process, and a number."""
    return f"{_prefix}{next(_count) & 0xFFFFFFFF:08x}"


def _new_prefix() -> None:
    global _prefix
    _prefix = secrets.token_hex(4)


_new_prefix()
os.register_at_fork(after_in_child=_new_prefix)


def _may_block(environ: dict[str, Any]) -> None:
    """Tell the loop that this request may take a while."""
    tell = environ.get("fsd.may_block")
    if tell is not None:
        tell()


def _told(call: Call, reply: Reply) -> tuple[dict[str, Any], str, str]:
    """(fields, target, outcome) of a line about a request."""
    fields: dict[str, Any] = {"address": call.environ["REMOTE_ADDR"], "status": reply.status}
    target = call.uri
    if isinstance(call.target, Place):
        fields["space"] = call.target.record.id
        target = "/" + to_text(call.target.path)
    return fields, target, "ok" if reply.status < 400 else "refused"


def _audit(call: Call, reply: Reply) -> None:
    fields, target, outcome = _told(call, reply)
    if "HTTP_DESTINATION" in call.environ and not call.router.public:  # the address of a link is a secret
        fields["destination"] = call.environ["HTTP_DESTINATION"]
    # Who read what may be written together with other such lines; who changed what is written before the answer.
    later = call.method == "GET" and outcome == "ok"
    logs.audit(call.user.name, call.method, target, outcome=outcome, later=later, **fields)
