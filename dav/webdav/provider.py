"""wsgidav's two extension points: one provider behind all aliases, and the request server with our methods.

wsgidav gives the frame (provider, resources, dispatch to ``do_METHOD``).  The methods are ours, one file each:
stock reads Destination before parsing it, keys locks by mount, writes in place and stats each entry 21 times.
"""

from collections.abc import Callable
from typing import Any, BinaryIO

from wsgidav.dav_provider import DAVCollection, DAVNonCollection, DAVProvider
from wsgidav.request_server import RequestServer

from dav.http.dates import NANO
from dav.http.errors import HttpError, from_os_error
from dav.routes import SPACES_PREFIX, Place, Virtual
from dav.ui import pages
from dav.uploads import numbered, tus
from dav.webdav import archive, changes, get, locks, propfind, proppatch, put, report
from dav.webdav.call import Body, Call, Reply, error_reply
from dav.webdav.properties import DIRECTORY_TYPE, content_type
from fsd.core import tree
from fsd.core.errors import NotYetKnown
from fsd.core.locks import PathLocked
from fsd.core.names import quote_path
from fsd.core.steps import Steps
from fsd.core.tree import Entry

_COLLECTION = "OPTIONS, GET, HEAD, PROPFIND, REPORT, PROPPATCH, DELETE, COPY, MOVE, LOCK, UNLOCK"
_FILE = "OPTIONS, GET, HEAD, PUT, PROPFIND, PROPPATCH, DELETE, COPY, MOVE, LOCK, UNLOCK"
_UNMAPPED = "OPTIONS, PUT, MKCOL, LOCK"
_TRIES = 3
Method = Callable[[Call], Reply | Body]
_CREATING = frozenset({"PUT", "MKCOL", "LOCK", "POST"})
"""These do not need their resource: what they miss is a parent (409), or something of the server's own."""
_VIRTUAL = "OPTIONS, GET, HEAD, PROPFIND, REPORT"


class File(DAVNonCollection):  # type: ignore[misc]
    """A file, link or special file as wsgidav sees it: what an Entry says, and its bytes."""

    def __init__(self, path: str, environ: dict[str, Any], place: Place, entry: Entry) -> None:
        super().__init__(path, environ)
        self.place = place
        self.entry = entry

    def get_content_length(self) -> int:
        return self.entry.size

    def get_content_type(self) -> str:
        return content_type(self.entry.name)

    def get_etag(self) -> str:
        return self.entry.etag

    def support_etag(self) -> bool:
        return True

    def get_last_modified(self) -> float:
        return self.entry.mtime_ns / NANO

    def get_content(self) -> BinaryIO:
        fd, _ = tree.open_file(self.place.space, self.place.path)
        return open(fd, "rb")


class Folder(DAVCollection):  # type: ignore[misc]
    """A directory, or (``place`` None) a collection above the spaces."""

    def __init__(
        self, path: str, environ: dict[str, Any], target: Place | Virtual, entry: Entry | None
    ) -> None:
        super().__init__(path, environ)
        self.target = target
        self.entry = entry

    def get_content_type(self) -> str:
        return DIRECTORY_TYPE

    def get_etag(self) -> str | None:
        return self.entry.etag if self.entry is not None else None

    def get_member_names(self) -> list[str]:
        if isinstance(self.target, Virtual):
            return [child.name.decode("utf-8", "surrogateescape") for child in self.target.children]
        _, children = tree.listing(self.target.space, self.target.path)
        return [child.name.decode("utf-8", "surrogateescape") for child in children]


def _without_doubt(handler: Method, call: Call) -> Reply | Body:
    """Call the method; its FileNotFoundError leaves here only when the resource itself is proven absent.

    Something that is deleted and made again meanwhile is asked for again: a method that fails has changed nothing.
    """
    for _ in range(_TRIES):
        try:
            return handler(call)
        except FileNotFoundError:
            if _proven_absent(call):
                raise
    raise NotYetKnown("The answer is not known yet; ask again.")


def _proven_absent(call: Call) -> bool:
    """Whether an ENOENT is about the request's own resource, and not about something the server lacks."""
    if isinstance(call.target, Virtual) or call.method in _CREATING:
        raise NotYetKnown("The answer is not known yet; ask again.")
    try:
        tree.lookup(call.target.space, call.target.path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def refused(error: HttpError | OSError, call: Call) -> Reply:
    """The answer for an error of the protocol or of the core; raises it again if it is none of theirs."""
    if isinstance(error, PathLocked):
        return error_reply(_locked(error, call))
    if isinstance(error, OSError):
        answer = from_os_error(error)
        if answer.status == 500:
            raise error
        return error_reply(answer)
    if error.status == 304:
        return Reply(304, list(error.headers))
    return error_reply(error)


def _locked(error: PathLocked, call: Call) -> HttpError:
    """423, and which resource's lock token was missing (RFC 4918 section 16), for whoever may see that resource."""
    here = call.target
    if isinstance(here, Place) and here.record.id == error.space_id:
        seen = not call.router.public or error.path.startswith(here.root_path)
        about = here.href_of(error.path) if seen else ""
    else:
        about = f"{SPACES_PREFIX}{error.space_id}/{quote_path(error.path)}"
    return HttpError(423, str(error), "lock-token-submitted" if about else "", about=about)


class Provider(DAVProvider):  # type: ignore[misc]
    """Resolves every alias; the Call of the request carries the resolved target."""

    def is_readonly(self) -> bool:
        return False

    def get_resource_inst(self, path: str, environ: dict[str, Any]) -> File | Folder | None:
        """The resource of the request's own URL; None where it provably does not exist."""
        call: Call = environ["fsd.call"]
        if isinstance(call.target, Virtual):
            return Folder(path, environ, call.target, None)
        try:
            entry = tree.lookup(call.target.space, call.target.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if entry.kind == "d":
            return Folder(path, environ, call.target, entry)
        return File(path, environ, call.target, entry)


class Requests(RequestServer):  # type: ignore[misc]
    """Dispatches a Call to the file of its method; one instance serves all threads."""

    def __init__(self, provider: Provider) -> None:
        super().__init__(provider)
        self._methods: dict[str, Method] = {
            "OPTIONS": self._options,
            "GET": self._get,
            "HEAD": self._head,
            "PROPFIND": propfind.handle,
            "PROPPATCH": proppatch.handle,
            "REPORT": report.handle,
            "PUT": self._put,
            "MKCOL": changes.mkcol,
            "DELETE": changes.delete,
            "COPY": changes.copy,
            "MOVE": changes.move,
            "POST": self._post,
            "LOCK": locks.lock,
            "UNLOCK": locks.unlock,
        }

    def reply(self, call: Call) -> Reply | Body:
        """The answer of the method, or an upload it agreed to; errors become their status."""
        try:
            handler = self._methods.get(call.method)
            if handler is None:
                raise HttpError(
                    405, f"{call.method} is not available here.", headers=(("Allow", self._allow(call)),)
                )
            return _without_doubt(handler, call)
        except (HttpError, OSError) as error:
            return refused(error, call)

    def steps(self, call: Call, incoming: Body) -> Steps[Reply]:
        """The answer to an upload of which every byte was fed."""
        try:
            if isinstance(incoming, put.Incoming):
                return (yield from incoming.steps())
            return incoming.finish()
        except FileNotFoundError:
            # What an upload misses is a parent (409), or something of the server's own.
            return refused(NotYetKnown("The answer is not known yet; ask again."), call)
        except (HttpError, OSError) as error:
            return refused(error, call)

    def _allow(self, call: Call) -> str:
        if isinstance(call.target, Virtual):
            return _VIRTUAL
        call.environ["wsgidav.provider"] = self._davProvider
        call.environ["fsd.call"] = call
        try:
            resource = self._davProvider.get_resource_inst(call.uri, call.environ)
        finally:
            del call.environ["fsd.call"]  # a reference cycle would keep both until the collector runs
        if resource is None:
            return _UNMAPPED
        return _COLLECTION if resource.is_collection else _FILE

    def _options(self, call: Call) -> Reply:
        headers = [
            ("Allow", self._allow(call)),
            ("DAV", "1, 2, 3"),
            ("MS-Author-Via", "DAV"),
            ("Accept-Ranges", "bytes"),
            *tus.headers_of_server(),
            ("Content-Length", "0"),
        ]
        return Reply(200, headers)

    def _put(self, call: Call) -> Body:
        return numbered.begin(call) if "HTTP_OC_CHUNKED" in call.environ else put.begin(call)

    def _post(self, call: Call) -> Reply | Body:
        """Only as TUS means it: the creation of an upload."""
        if "HTTP_TUS_RESUMABLE" not in call.environ:
            raise HttpError(405, "POST is not available here.", headers=(("Allow", self._allow(call)),))
        return tus.create(call)

    def _head(self, call: Call) -> Reply:
        kind = archive.wanted(call.environ)
        if kind is None or isinstance(call.target, Virtual):
            return get.head(call)
        folder = tree.lookup(call.target.space, call.target.path).kind == "d"
        return archive.folder(call, kind) if folder else get.head(call)

    def _get(self, call: Call) -> Reply:
        if isinstance(call.target, Virtual):
            return pages.virtual_page(call)
        try:
            return get.get(call)
        except IsADirectoryError:
            kind = archive.wanted(call.environ)
            return archive.folder(call, kind) if kind is not None else pages.folder_page(call)
