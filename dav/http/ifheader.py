"""The ``If`` header (RFC 4918 section 10.4), pure: parsing apart from evaluation."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

# What may repeat here never gives back (possessive): a header of spaces alone would cost their number cubed.
_TOKEN = re.compile(
    r'\s*+(?:(\()|(\))|<([^<>]{1,4096})>|\[\s*+((?:W/)?"[^"]*+"|[^\]"\s]*+)\s*+\]|(Not\b))', re.I
)
_MAX_CONDITIONS = 128
NO_LOCK = "DAV:no-lock"


class IfSyntax(ValueError):
    """The header does not follow the grammar: 400."""


@dataclass(frozen=True, slots=True)
class Condition:
    """``state`` is a lock token, ``etag`` an opaque entity tag; exactly one is set."""

    negated: bool
    state: str | None = None
    etag: str | None = None


@dataclass(slots=True)
class IfHeader:
    """Lists by resource: the key is a URL as sent, or None for the request's own resource."""

    lists: list[tuple[str | None, list[Condition]]] = field(default_factory=list)

    @property
    def tokens(self) -> frozenset[str]:
        """Every lock token the client submits, in whichever list."""
        return frozenset(
            condition.state
            for _, conditions in self.lists
            for condition in conditions
            if condition.state is not None and condition.state != NO_LOCK
        )

    def names_etags(self) -> bool:
        """Whether any condition is about an entity tag."""
        return any(condition.etag is not None for _, conditions in self.lists for condition in conditions)


def parse(header: str) -> IfHeader:
    """Parse it.  IfSyntax unless it is tagged or untagged lists, each with at least one condition."""
    result = IfHeader()
    tag: str | None = None
    current: list[Condition] | None = None
    negated = False
    lists_of_tag = 1
    count = 0
    position = 0
    header = header.rstrip()
    while position < len(header):
        match = _TOKEN.match(header, position)
        if match is None:
            raise IfSyntax("The If header is malformed.")
        position = match.end()
        opening, closing, url, etag, negation = match.groups()
        if current is None:
            if opening:
                current = []
            elif url is not None and lists_of_tag and (tag is not None or not result.lists):
                tag, lists_of_tag = url, 0
            else:
                raise IfSyntax("The If header is malformed.")
        elif closing:
            if not current or negated:
                raise IfSyntax("A list in the If header is empty.")
            result.lists.append((tag, current))
            lists_of_tag += 1
            current = None
        elif negation and not negated:
            negated = True
        elif url is not None or etag is not None:
            count += 1
            if count > _MAX_CONDITIONS:
                raise IfSyntax("The If header has too many conditions.")
            current.append(Condition(negated, url, None if etag is None else _opaque(etag)))
            negated = False
        else:
            raise IfSyntax("The If header is malformed.")
    if current is not None or not result.lists or not lists_of_tag:
        raise IfSyntax("The If header is incomplete.")
    return result


def _opaque(etag: str) -> str:
    # Entity tags are compared strongly here; a weak one must never match, so it keeps its prefix.
    return etag[1:-1] if etag.startswith('"') else etag


def evaluate(
    header: IfHeader, state_of: Callable[[str | None], tuple[str | None, frozenset[str]] | None]
) -> bool:
    """Whether any list holds.  ``state_of(url)`` gives (etag or None if unmapped, tokens of its locks).

    ``state_of`` may return None for a URL that is not ours: nothing positive holds there.
    """
    for url, conditions in header.lists:
        found = state_of(url)
        etag, tokens = found if found is not None else (None, frozenset[str]())
        if all(_holds(condition, etag, tokens) for condition in conditions):
            return True
    return False


def _holds(condition: Condition, etag: str | None, tokens: frozenset[str]) -> bool:
    if condition.state is not None:
        return (condition.state in tokens) is not condition.negated
    return (etag is not None and condition.etag == etag) is not condition.negated
