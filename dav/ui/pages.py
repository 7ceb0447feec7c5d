"""Pages a person sees in a browser: their spaces, folders, and errors.

Everything is in the answer: no scripts, one inline style sheet, and a policy that forbids all else.
"""

import re
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import unescape

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from dav.http.dates import NANO
from dav.routes import Place, Virtual, root_entry
from fsd.core import tree
from fsd.core.names import quote_path, split, to_text
from fsd.core.tree import Entry

if TYPE_CHECKING:
    from dav.webdav.call import Call, Reply

_HEADERS = [
    ("Content-Type", "text/html; charset=utf-8"),
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Permissions-Policy", "interest-cohort=()"),
    ("Cache-Control", "private, no-store"),
]
_KINDS = {"d": "folder", "f": "file", "l": "symbolic link", "o": "special file"}
_MESSAGE = re.compile(rb"<s:message>(.*?)</s:message>", re.S)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a listing; ``href`` None: nothing to open."""

    name: str
    href: str | None
    kind: str
    size: str
    modified: str
    machine_time: str


@dataclass(frozen=True, slots=True)
class Crumb:
    """A step of the way up; the last one has no ``href``."""

    name: str
    href: str | None


@lru_cache(maxsize=8)
def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("dav.ui"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)


def _page(template: str, code: int, **values: Any) -> "Reply":
    from dav.webdav.call import Reply

    html = _template(template).render(**values).encode("utf-8", "replace")
    return Reply(code, [*_HEADERS, ("Content-Length", str(len(html)))], [html])


def human_size(size: int) -> str:
    """``1.5 MB``, in powers of 1000 as disks are sold and browsers show."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{int(value)} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def _times(mtime_ns: int) -> tuple[str, str]:
    try:
        moment = time.gmtime(mtime_ns // NANO)
    except (OverflowError, ValueError, OSError):
        return "", ""
    return time.strftime("%Y-%m-%d %H:%M UTC", moment), time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)


def _row(base: str, entry: Entry) -> Row:
    shown, machine = _times(entry.mtime_ns)
    href: str | None = f"{base}/{quote_path(entry.name)}" + ("/" if entry.kind == "d" else "")
    if entry.kind not in "fd":
        href = None
    return Row(to_text(entry.name), href, _KINDS[entry.kind], human_size(entry.size), shown, machine)


def folder_page(call: "Call") -> "Reply":
    """The listing of a directory of a space."""
    place = call.place
    own, children = tree.listing(place.space, place.path)
    rows = [
        _row(_local(place.href), entry) for entry in sorted(children, key=lambda e: (e.kind != "d", e.name))
    ]
    crumbs = _crumbs(place, public=call.router.public)
    return _page(
        "folder.html",
        200,
        title=crumbs[-1].name,
        crumbs=crumbs,
        rows=rows,
        total=human_size(own.size),
        user=call.user.display_name or call.user.name,
        session=call.environ.get("fsd.session", False),
    )


def _local(href: str) -> str:
    """The same path on this server: one that begins with two slashes would name another (RFC 3986 section 4.2)."""
    return "/" + href.lstrip("/")


def _crumbs(place: Place, *, public: bool) -> list[Crumb]:
    steps = [] if public else [Crumb("Spaces", "/")]
    below = place.path[len(place.root_path) :].strip(b"/")
    names = below.split(b"/") if below else []
    top = to_text(split(place.root_path)[1]) if public and place.root_path else place.record.name
    href = _local(place.root_href)
    steps.append(Crumb(top, href + "/" if names else None))
    for index, name in enumerate(names):
        href += "/" + quote_path(name)
        steps.append(Crumb(to_text(name), href + "/" if index < len(names) - 1 else None))
    return steps


def virtual_page(call: "Call") -> "Reply":
    """The user's spaces, or what a collection above them holds."""
    target = call.target
    assert isinstance(target, Virtual)
    if target.names in ((), (b"dav",), (b"dav", b"home")):
        pairs = list(call.router.home(call.user).items())
    else:
        pairs = [(child.name, child.record) for child in target.children if child.record is not None]
    rows = []
    for _, record in pairs:
        root = root_entry(call.router.view, record)
        shown, machine = _times(root.mtime_ns) if root is not None else ("", "")
        href = f"/dav/spaces/{quote_path(record.id.encode())}/" if root is not None else None
        kind = f"{record.type} space" if root is not None else "unavailable now"
        size = human_size(root.size) if root is not None else ""
        rows.append(Row(record.name, href, kind, size, shown, machine))
    return _page(
        "folder.html",
        200,
        title="Spaces",
        crumbs=[Crumb("Spaces", None)],
        rows=rows,
        total="",
        user=call.user.display_name or call.user.name,
        session=call.environ.get("fsd.session", False),
    )


def login_page(code: int, sentence: str, onward: str, name: str) -> "Reply":
    """The form to log in with; `onward`: the page after it, `name`: who tried before."""
    return _page("login.html", code, title="Log in", sentence=sentence, onward=onward, name=name)


def wants_page(environ: dict[str, Any]) -> bool:
    """Whether a browser asks, for whom an XML error would be no answer."""
    return environ.get("REQUEST_METHOD") in ("GET", "POST") and "text/html" in environ.get("HTTP_ACCEPT", "")


def error_page(reply: "Reply", sentence: str = "") -> "Reply":
    """The same refusal for a person; keeps status and the headers that matter (challenge, Retry-After)."""
    kept = [
        pair
        for pair in reply.headers
        if pair[0] in ("WWW-Authenticate", "Retry-After", "Allow", "Content-Range")
    ]
    if not sentence:
        match = _MESSAGE.search(b"".join(reply.body))
        sentence = unescape(match[1].decode("utf-8", "replace")) if match else ""
    page = _page("error.html", reply.status, title=reply.line, sentence=sentence, status=reply.status)
    page.headers.extend(kept)
    return page
