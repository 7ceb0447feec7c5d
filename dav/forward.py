"""Requests for a space that another host works on: passed on to that host, answered with its answer.

Hosts that share spaces each number changes by themselves, so a directory's etag, locks and uploads are the holder's
(docs/decisions/0025). What changes a space, and what asks for its etags and properties, is therefore answered by the
host that has its lease, whichever host the client came to. Content (GET, HEAD) is read here: the tree is the same.

Authentication is not passed over: each host asks for itself, with the same header, and the accounts are the same.
"""

import http.client
import logging
import re
import select
import time
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from dav.http.errors import HttpError
from dav.http.target import request_path
from dav.routes import Place
from dav.view import View
from dav.webdav.call import Body, Call, Reply
from fsd.core import lease
from fsd.core.accounts import User
from fsd.core.space import Space, SpaceRecord

log = logging.getLogger(__name__)

_HERE = frozenset({"GET", "HEAD", "OPTIONS"})
_MARK = "X-Fsd-Passed-On"
_BY_SPACE = re.compile(r"/(?:tus|trash-bin|meta)/([0-9a-f]{8}\$[0-9a-f]{32})")
_BY_USER = re.compile(r"/(?:uploads|trash-bin)/[^/]")
_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade expect"
    " content-length x-request-id date server strict-transport-security".split()
)
"""Of a connection, or made by this host anew (RFC 9110, 7.6.1)."""
_CONNECT_S, _ANSWER_S = 3.0, 120.0
_LOOK_S = 0.25
"""Between two looks whether the host that was asked still has the lease: one that was stopped never answers."""
_RETRY = (("Retry-After", "2"),)


class Holder(NamedTuple):
    """The host that works on a space: the URL by which it is reached."""

    space: Space
    address: str


def elsewhere(call: Call) -> Holder | None:
    """The host that has to answer; None if this one does. One that is asked by another host never asks a third: it
    refuses, and the client asks again."""
    if call.method in _HERE or not isinstance(call.target, Place):
        return None
    # A copy changes nothing but where it goes to; what is read of the other space is the disk, which all see.
    changed = call.destination() if call.method == "COPY" else call.target
    return _holder(changed.space, call.environ)


def of_destination(call: Call, target: Place) -> Holder | None:
    """Who has to put there what this host moves away; None if it does so itself. HttpError 503 if nobody can."""
    if lease.may_write(target.space):
        return None
    found = _holder(target.space, {})
    if found is None:
        raise HttpError(503, "No host works on the destination's space just now; ask again.", headers=_RETRY)
    return found


def copied(call: Call, target: Place, holder: Holder) -> Reply:
    """The other host's reply to a COPY of what the call is about to move. The conditions on the source are this host's
    matter, and the locks of the destination that one's, which is told all lock tokens that the client has."""
    environ = {
        key: value
        for key, value in call.environ.items()
        if key not in ("HTTP_IF", "HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH", "HTTP_IF_UNMODIFIED_SINCE")
    }
    environ |= {"REQUEST_METHOD": "COPY", "HTTP_DEPTH": "infinity", "CONTENT_LENGTH": "0"}
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    if call.tokens:
        # Lists are alternatives, and the last one always holds (RFC 4918, 10.4.8).
        lists = "".join(f"(<{token}>)" for token in sorted(call.tokens))
        environ["HTTP_IF"] = f"{lists}(Not <DAV:no-lock>)"
    return _Passing(environ, holder.address, holder.space).finish()


def beside(environ: dict[str, Any], user: User, view: View) -> Holder | None:
    """The same for addresses that are no places in a tree: uploads under way, trash, versions. An upload's HEAD tells
    how far it is, so only GET is answered here."""
    if environ["REQUEST_METHOD"] in ("GET", "OPTIONS"):
        return None
    path = unquote(request_path(environ["REQUEST_URI"]))
    try:
        if found := _BY_SPACE.search(path):
            record: SpaceRecord | None = view.record(found[1])
        else:
            record = view.personal(user) if _BY_USER.search(path) else None
        return None if record is None else _holder(view.space(record), environ)
    except FileNotFoundError:
        return None


def _holder(space: Space, environ: dict[str, Any]) -> Holder | None:
    if lease.may_write(space) or "HTTP_X_FSD_PASSED_ON" in environ:
        return None
    found, ours = lease.holder(space), lease.host_of(space.state_dir)
    if found is None or ours is None or found.released or found.address in ("", ours.address):
        return None
    return Holder(space, found.address)


def begin(call: Call, holder: Holder) -> Reply | Body:
    """The other host's reply, or where the request's body goes first. HttpError 503 if it can't be reached."""
    passing = _Passing(call.environ, holder.address, holder.space)
    return passing if call.has_body() else passing.finish()


class _Passing:
    """One request on its way to another host."""

    def __init__(self, environ: dict[str, Any], address: str, space: Space) -> None:
        self._space = space
        self._token = _token(space)
        target = urlsplit(address)
        kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(target.netloc, timeout=_CONNECT_S)
        self._address = address
        length = environ.get("CONTENT_LENGTH")
        self._chunked = length is None and "HTTP_TRANSFER_ENCODING" in environ
        try:
            self._connection.connect()
            self._connection.sock.settimeout(_ANSWER_S)
            self._connection.putrequest(
                environ["REQUEST_METHOD"], environ["REQUEST_URI"], skip_host=True, skip_accept_encoding=True
            )
            for name, value in _headers(environ):
                self._connection.putheader(name, value)
            if self._chunked:
                self._connection.putheader("Transfer-Encoding", "chunked")
            else:
                self._connection.putheader("Content-Length", length or "0")
            self._connection.endheaders()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error

    def feed(self, view: memoryview) -> None:
        """The next bytes of the body."""
        data = bytes(view)
        if not data:
            return
        try:
            self._connection.send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        except OSError as error:
            raise self._unreachable(error) from error

    def finish(self) -> Reply:
        """The other host's answer, whole."""
        try:
            if self._chunked:
                self._connection.send(b"0\r\n\r\n")
            self._wait()
            answer = self._connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            self._connection.close()
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
        if answer.status not in (204, 304):
            headers.append(("Content-Length", str(len(data))))
        return Reply(answer.status, headers, [data])

    def _wait(self) -> None:
        """Until there is an answer, or it is no longer that host's to give."""
        until = time.monotonic() + _ANSWER_S
        readable = select.poll()
        readable.register(self._connection.sock, select.POLLIN)
        while not readable.poll(_LOOK_S * 1000):
            if lease.may_write(self._space) or _token(self._space) != self._token:
                raise TimeoutError("another host works on the space meanwhile")
            if time.monotonic() > until:
                raise TimeoutError("no answer")

    def abort(self) -> None:
        """The client is gone: the other host sees it, too, and drops what came."""
        self._connection.close()

    def _unreachable(self, error: Exception) -> HttpError:
        self._connection.close()
        log.info("the host at %s, which works on the space, does not answer: %s", self._address, error)
        return HttpError(503, "The host that works on this space does not answer; ask again.", headers=_RETRY)


def _token(space: Space) -> int:
    found = lease.holder(space)
    return 0 if found is None else found.token


def _headers(environ: dict[str, Any]) -> list[tuple[str, str]]:
    found = [(_MARK, "1")]
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            name = key[5:].replace("_", "-").title()
            if name.lower() not in _HOP:
                found.append((name, value))
    if "CONTENT_TYPE" in environ:
        found.append(("Content-Type", environ["CONTENT_TYPE"]))
    return found
