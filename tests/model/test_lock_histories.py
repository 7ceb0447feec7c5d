"""Random histories of locks, `If` headers and changes by two people through two servers of one installation (one of
them on cheroot's own loop), against an oracle that knows RFC 4918 and nothing of fsd."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import chain

import pytest
from lxml import etree

from fsd.core.grants import Role
from tests.support.davclient import Answer, Dav
from tests.support.seeds import seed_of
from tests.unit.dav.served import Served, serving

D = "{DAV:}"
PEOPLE = ("alice", "bob")
PATHS = ("d", "d/x", "d/s", "d/s/y", "e", "e/x", "f")
LOCKINFO = (
    '<d:lockinfo xmlns:d="DAV:"><d:lockscope><d:{}/></d:lockscope><d:locktype><d:write/></d:locktype>'
    "<d:owner>{}</d:owner></d:lockinfo>"
)
PATCH = (
    b'<d:propertyupdate xmlns:d="DAV:"><d:set><d:prop><p xmlns="u:">1</p></d:prop></d:set></d:propertyupdate>'
)
ASK = b'<d:propfind xmlns:d="DAV:"><d:prop><d:getetag/><d:resourcetype/><d:lockdiscovery/></d:prop></d:propfind>'
UNKNOWN = "urn:uuid:00000000-0000-4000-8000-000000000000"


def above(path: str) -> list[str]:
    """The collections that hold it, the root ("") included."""
    parts = path.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts))]


def below(path: str, top: str) -> bool:
    return path.startswith(top + "/") or (not top and path != "")


@dataclass(frozen=True)
class Held:
    """A lock as the oracle knows it."""

    token: str
    path: str
    deep: bool
    exclusive: bool
    who: str

    def covers(self, path: str) -> bool:
        return path == self.path or (self.deep and below(path, self.path))


@dataclass
class Oracle:
    """What is there, and what is locked."""

    kinds: dict[str, str] = field(default_factory=lambda: {"": "d"})
    locks: list[Held] = field(default_factory=list)

    def blocked(self, who: str, tokens: set[str], path: str, *, subtree: bool, binding: bool) -> bool:
        """RFC 4918 sections 6 and 7: is there a lock of whose token none was submitted by its owner?"""
        groups = [[held for held in self.locks if held.covers(path)]]
        if binding:
            parent = above(path)[-1]
            groups.append([held for held in self.locks if held.covers(parent)])
        if subtree:
            inner = {held.path for held in self.locks if below(held.path, path)}
            groups += [[held for held in self.locks if held.path == each] for each in inner]
        return any(
            group and not any(held.token in tokens and held.who == who for held in group) for group in groups
        )

    def conflicts(self, path: str, *, deep: bool, exclusive: bool) -> bool:
        there = [held for held in self.locks if held.covers(path) or (deep and below(held.path, path))]
        return any(exclusive or held.exclusive for held in there)

    def drop(self, path: str) -> None:
        self.locks = [held for held in self.locks if held.path != path and not below(held.path, path)]

    def tree(self, path: str) -> dict[str, str]:
        """What is at `path` and below, by the rest of its path."""
        return {
            each[len(path) :]: kind for each, kind in self.kinds.items() if each == path or below(each, path)
        }

    def remove(self, path: str) -> None:
        for each in self.tree(path):
            del self.kinds[path + each]

    def parent_is_there(self, path: str) -> bool:
        return self.kinds.get(above(path)[-1]) == "d"


@dataclass
class Condition:
    """One of an If header: what it says, and whether it holds."""

    text: str
    holds: bool
    token: str | None


class History:
    """One tree, and what was done to it."""

    def __init__(self, servers: tuple[Served, ...], name: str) -> None:
        self.oracle = Oracle()
        self.content = 0
        self.outcomes = [0, 0]
        first = servers[0]
        self.top = f"/dav/spaces/{first.shared.id}/{name}"
        self.clients = {
            (who, number): served.dav(self.top, who)
            for who in PEOPLE
            for number, served in enumerate(servers)
        }
        assert first.dav("", "alice").raw("MKCOL", self.top).status == 201
        for path in ("d", "d/s", "e"):
            assert self.clients["alice", 0].mkcol(path.encode()).status == 201
            self.oracle.kinds[path] = "d"
        for path in ("d/x", "d/s/y", "f"):
            self.clients["alice", 1].put(path.encode(), b"")
            self.oracle.kinds[path] = "f"
        self.seen = self.look()

    # -- the world as it is

    def look(self) -> dict[str, tuple[str, str, frozenset[str]]]:
        """(kind, etag, tokens) of everything."""
        found: dict[str, tuple[str, str, frozenset[str]]] = {}
        waiting = [""]
        client = self.clients["alice", 0]
        while waiting:
            here = waiting.pop()
            answer = client.raw("PROPFIND", client.url(here.encode()), ASK, {"Depth": "1"})
            assert answer.status == 207, (here, answer)
            for response in etree.fromstring(answer.body).findall(f"{D}response"):
                path = response.findtext(f"{D}href", "")[len(self.top) :].strip("/")
                folder = response.find(f".//{D}collection") is not None
                tokens = frozenset(each.text or "" for each in response.iterfind(f".//{D}locktoken/{D}href"))
                if folder and path not in found and path != here:
                    waiting.append(path)
                found[path] = ("d" if folder else "f", response.findtext(f".//{D}getetag", ""), tokens)
        return found

    def settle(self, answer: Answer, allowed: set[int], reasons: set[int]) -> bool:
        """Whether it went through; the status must be one that is right."""
        self.outcomes[not reasons] += 1
        if reasons:
            assert answer.status in reasons, (answer, reasons, self.oracle)
        else:
            assert answer.status in allowed, (answer, allowed, self.oracle)
        return not reasons

    def compare(self, *changed: str, etags_may: tuple[str, ...] = ()) -> None:
        """The world is as the oracle says; of what stays, exactly `changed` and what holds it have other etags."""
        before, self.seen = self.seen, self.look()
        assert {path: kind for path, (kind, _, _) in self.seen.items()} == self.oracle.kinds
        for path, (_, _, tokens) in self.seen.items():
            assert tokens == {held.token for held in self.oracle.locks if held.covers(path)}, path
        must = set(chain(changed, *map(above, changed)))
        may = set(chain(etags_may, *map(above, etags_may)))
        for path in before.keys() & self.seen.keys() - may:
            same = before[path][1] == self.seen[path][1]
            assert same == (path not in must), (path, changed, before[path], self.seen[path])

    # -- what is asked

    def client(self, rng: random.Random) -> tuple[str, Dav]:
        who = rng.choice(PEOPLE)
        return who, self.clients[who, rng.randint(0, 1)]

    def path(self, rng: random.Random) -> str:
        return rng.choice(PATHS)

    def condition(self, rng: random.Random, about: str) -> Condition:
        """A condition on the resource `about`."""
        negated = rng.randint(0, 4) == 0
        kind, etag, tokens = self.seen.get(about, ("", "", frozenset()))
        choice = rng.randint(0, 9)
        token = None
        if choice < 6 and self.oracle.locks:
            held = rng.choice(self.oracle.locks)
            token, holds = held.token, held.covers(about)
            text = f"<{token}>"
        elif choice == 6:
            text, holds, token = f"<{UNKNOWN}>", False, UNKNOWN
        elif choice == 7:
            text, holds = "<DAV:no-lock>", False
        elif choice == 8 and etag:
            text, holds = f"[{etag}]", True
        else:
            text, holds = rng.choice(['["x"]', f"[W/{etag or chr(34) + chr(34)}]"]), False
        return Condition(("Not " if negated else "") + text, holds is not negated, token)

    def if_header(self, rng: random.Random, client: Dav, own: str) -> tuple[dict[str, str], set[str], bool]:
        """(headers, tokens submitted, whether it holds). Often a good one, with the tokens that are needed."""
        style = rng.randint(0, 6)
        if style == 0 or not self.oracle.locks:
            return {}, set(), True
        if style < 5:
            held = self.oracle.locks
            if style < 3:
                held = rng.choices(self.oracle.locks, k=rng.randint(1, 4))
            text = " ".join(f"<{client.url(h.path.encode())}> (<{h.token}>)" for h in held)
            return {"If": text}, {h.token for h in held}, True
        tagged = rng.random() < 0.5
        parts, tokens, holds = [], set(), False
        for _ in range(rng.randint(1, 3)):
            about = self.path(rng) if tagged else own
            lists = []
            for _ in range(rng.randint(1, 2)):
                conditions = [self.condition(rng, about) for _ in range(rng.randint(1, 3))]
                lists.append("(" + " ".join(each.text for each in conditions) + ")")
                tokens |= {each.token for each in conditions if each.token}
                holds = holds or all(each.holds for each in conditions)
            url = client.url(about.encode())
            url = rng.choice([url, f"http://{client.host}:{client.port}{url}"])
            parts.append((f"<{url}> " if tagged else "") + " ".join(lists))
        return {"If": " ".join(parts)}, tokens, holds

    # -- what is done

    def step(self, rng: random.Random) -> None:
        rules = (
            self.lock,
            self.lock,
            self.unlock,
            self.refresh,
            self.put,
            self.put,
            self.mkcol,
            self.proppatch,
        )
        rng.choice((*rules, self.delete, self.move, self.copy))(rng)

    def lock(self, rng: random.Random) -> None:
        who, client = self.client(rng)
        path = self.path(rng)
        deep, exclusive = rng.random() < 0.5, rng.random() < 0.5
        headers, tokens, holds = self.if_header(rng, client, path)
        headers |= {"Depth": "infinity" if deep else "0", "Timeout": "Second-3600"}
        body = LOCKINFO.format("exclusive" if exclusive else "shared", who).encode()
        answer = client.request("LOCK", path.encode(), body, headers)
        oracle, new = self.oracle, path not in self.oracle.kinds
        reasons = {412} if not holds else set()
        if oracle.conflicts(path, deep=deep, exclusive=exclusive):
            reasons.add(423)
        if new and not oracle.parent_is_there(path):
            reasons.add(409)
        if new and oracle.blocked(who, tokens, path, subtree=False, binding=True):
            reasons.add(423)
        if not self.settle(answer, {201} if new else {200}, reasons):
            return self.compare()
        token = answer.headers["lock-token"].strip("<>")
        oracle.locks.append(Held(token, path, deep, exclusive, who))
        oracle.kinds.setdefault(path, "f")
        return self.compare(*([path] if new else []))

    def unlock(self, rng: random.Random) -> None:
        who, client = self.client(rng)
        if not self.oracle.locks:
            return
        held = rng.choice(self.oracle.locks)
        path = rng.choice([held.path, held.path, self.path(rng)])
        answer = client.request("UNLOCK", path.encode(), None, {"Lock-Token": f"<{held.token}>"})
        reasons = set()
        if not held.covers(path):
            reasons.add(409)
        elif held.who != who:
            reasons.add(403)
        if self.settle(answer, {204}, reasons):
            self.oracle.locks.remove(held)
        self.compare()

    def refresh(self, rng: random.Random) -> None:
        who, client = self.client(rng)
        if not self.oracle.locks:
            return
        held = rng.choice(self.oracle.locks)
        path = rng.choice([held.path, held.path, self.path(rng)])
        answer = client.request("LOCK", path.encode(), None, {"If": f"(<{held.token}>)"})
        reasons = {412} if not held.covers(path) else set()
        if held.who != who:
            reasons.add(403)
        self.settle(answer, {200}, reasons)
        self.compare()

    def put(self, rng: random.Random) -> None:
        who, client = self.client(rng)
        path = self.path(rng)
        headers, tokens, holds = self.if_header(rng, client, path)
        self.content += 1
        answer = client.request("PUT", path.encode(), b"%d" % self.content, headers)
        oracle, new = self.oracle, path not in self.oracle.kinds
        reasons = {412} if not holds else set()
        if oracle.blocked(who, tokens, path, subtree=False, binding=new):
            reasons.add(423)
        if oracle.kinds.get(path) == "d":
            reasons.add(405)
        if new and not oracle.parent_is_there(path):
            reasons.add(409)
        if not self.settle(answer, {201} if new else {204}, reasons):
            return self.compare()
        oracle.kinds[path] = "f"
        return self.compare(path)

    def mkcol(self, rng: random.Random) -> None:
        who, client = self.client(rng)
        path = self.path(rng)
        headers, tokens, holds = self.if_header(rng, client, path)
        answer = client.request("MKCOL", path.encode(), None, headers)
        oracle = self.oracle
        reasons = {412} if not holds else set()
        if oracle.blocked(who, tokens, path, subtree=False, binding=True):
            reasons.add(423)
        if path in oracle.kinds:
            reasons.add(405)
        elif not oracle.parent_is_there(path):
            reasons.add(409)
        if not self.settle(answer, {201}, reasons):
            return self.compare()
        oracle.kinds[path] = "d"
        return self.compare(path)

    def proppatch(self, rng: random.Random) -> None:
        who, client = self.client(rng)
        path = self.path(rng)
        headers, tokens, holds = self.if_header(rng, client, path)
        answer = client.request("PROPPATCH", path.encode(), PATCH, headers)
        reasons = {412} if not holds else set()
        if self.oracle.blocked(who, tokens, path, subtree=False, binding=False):
            reasons.add(423)
        if path not in self.oracle.kinds:
            reasons = reasons | {404}
        self.settle(answer, {207}, reasons)
        # A folder's etag may follow a property below it; a file's own never does.
        self.compare(etags_may=(path + "/",) if self.oracle.kinds.get(path) == "d" else tuple(above(path)))

    def delete(self, rng: random.Random) -> None:
        who, client = self.client(rng)
        path = self.path(rng)
        headers, tokens, holds = self.if_header(rng, client, path)
        answer = client.request("DELETE", path.encode(), None, headers)
        oracle = self.oracle
        reasons = {412} if not holds else set()
        if path not in oracle.kinds:
            reasons.add(404)
        if oracle.blocked(who, tokens, path, subtree=True, binding=True):
            reasons.add(423)
        if not self.settle(answer, {204}, reasons):
            return self.compare()
        oracle.remove(path)
        oracle.drop(path)
        return self.compare(path)

    def move(self, rng: random.Random) -> None:
        self.transfer(rng, moving=True)

    def copy(self, rng: random.Random) -> None:
        self.transfer(rng, moving=False)

    def transfer(self, rng: random.Random, *, moving: bool) -> None:
        who, client = self.client(rng)
        src, dst = self.path(rng), self.path(rng)
        overwrite = rng.random() < 0.5
        headers, tokens, holds = self.if_header(rng, client, src)
        url = client.url(dst.encode())
        headers |= {
            "Destination": rng.choice([url, f"http://{client.host}:{client.port}{url}"]),
            "Overwrite": "T" if overwrite else "F",
        }
        answer = client.request("MOVE" if moving else "COPY", src.encode(), None, headers)
        oracle, taken = self.oracle, dst in self.oracle.kinds
        reasons = {412} if not holds or (taken and not overwrite) else set()
        if src not in oracle.kinds:
            reasons.add(404)
        if src == dst or below(dst, src):
            reasons.add(403)
        if below(src, dst):
            reasons |= {403, 409}
        if not oracle.parent_is_there(dst):
            reasons.add(409)
        if oracle.blocked(who, tokens, dst, subtree=True, binding=True) or (
            moving and oracle.blocked(who, tokens, src, subtree=True, binding=True)
        ):
            reasons.add(423)
        if not self.settle(answer, {204} if taken else {201}, reasons):
            return self.compare()
        files = oracle.kinds.get(dst) == oracle.kinds[src] == "f"
        tree = oracle.tree(src)
        if taken:
            oracle.remove(dst)
            if moving or not files:
                oracle.drop(dst)
        if moving:
            oracle.remove(src)
            oracle.drop(src)
        oracle.kinds |= {dst + rest: kind for rest, kind in tree.items()}
        # What stood at the destination before and what does now are two things with one name.
        return (
            self.compare(
                *([src] if moving else []),
                *(above(dst)[-1:]),
                etags_may=tuple(dst + rest + "/" for rest in tree) if taken else (),
            )
            if not taken
            else self.compare_loosely(src if moving else dst, dst)
        )

    def compare_loosely(self, *changed: str) -> None:
        """After a replacement: what holds the two has other etags; of what has a new owner nothing is said."""
        before = self.seen
        self.compare(
            etags_may=tuple(path for path in self.seen if any(p == path or below(path, p) for p in changed))
            + changed
        )
        for path in set(chain(*map(above, changed))):
            assert before[path][1] != self.seen[path][1], path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    base = tmp_path_factory.mktemp("locks")
    with serving(base) as first:
        bob = first.registry.accounts.get("bob")
        first.registry.grants.grant(first.shared, "user", bob.id, bob.name, Role.EDITOR)
        second = Served(base, again=True, http_loop="stock")
        second.shared = first.shared
        second.start()
        try:
            yield first, second
        finally:
            second.stop()


def test_locks_and_if_headers(pair, request):
    seed = seed_of(request.config)
    rounds, steps = (400, 60) if request.config.getoption("--big") else (10, 40)
    print(f"seed {seed}, {rounds} rounds of {steps} requests")
    rng = random.Random(seed)
    refused = done = 0
    for number in range(rounds):
        history = History(pair, f"r{seed}-{number}")
        for _ in range(steps):
            history.step(rng)
        refused += history.outcomes[0]
        done += history.outcomes[1]
    print(f"{done} done, {refused} refused")
    assert min(done, refused) > rounds * steps // 5, "hardly anything is put to the test"
