"""A host that is killed, or stopped and goes on, at any call of a change: the next host ends what it had begun, at
once and by itself, and what that one changes later stays, also when the first host has its leases again.

`--big` stops at every call of the changes of two spaces, not at some of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fsd.core import operations, properties, tree
from fsd.core.errors import NotYetKnown
from fsd.core.space import Space
from tests.faults.cases import NEW
from tests.faults.two_hosts import SEEN, Clock, Pair
from tests.faults.world import TREE, Files, below, changed, contents, describe, fill
from tests.support import killpoints
from tests.support.killpoints import CHANGING
from tests.support.worlds import differences, drain, sweep
from tests.unit.core_space import put

pytestmark = pytest.mark.skipif(not killpoints.available(), reason="needs ptrace(2) on x86-64")
# Its databases are a host's own: with one of them locked by a process that stands still, it gets no lease again.
OF_TREES = {
    number
    for number in SEEN
    if CHANGING[number].startswith(("rename", "link", "mkdir", "setxattr", "lsetxattr", "remove"))
}
LATER = b"what the next host has written"
SMALL, LARGE = b"small", b"<large>" + b"x" * 3000


class Struck:
    """Lets `act` happen in front of the call number `index` that others see, and kills the host there if asked to."""

    def __init__(
        self, index: int, act: Callable[[], object], *, kill: bool, calls: Container[int] = SEEN
    ) -> None:
        self._calls = calls
        self.call = ""
        self._left, self._act, self._kill = index, act, kill

    def __call__(self, regs: object) -> bool:
        number = regs[killpoints._ORIG_RAX]  # type: ignore[index]
        if number not in self._calls:
            return False
        self._left -= 1
        if self._left != -1:
            return False
        self.call = killpoints.CHANGING[number]
        if not self._kill:
            self._act()
        return self._kill


@dataclass(frozen=True)
class Case:
    """A change of two spaces: how their trees look after it, and where another host writes later."""

    operate: Callable[[list[Space]], object]
    trees: tuple[Files, Files]
    later: tuple[bytes, bytes] = (b"later", b"later")
    both: tuple[Files, Files] | None = None
    """What may be left as well."""
    kept: tuple[bytes, ...] = field(default=(b"the old content",))


def move(src: bytes, dst: bytes, *, overwrite: bool = False) -> Callable[[list[Space]], object]:
    return lambda spaces: operations.move(spaces[0], src, spaces[1], dst, overwrite=overwrite)


def copy(src: bytes, dst: bytes, *, overwrite: bool = False) -> Callable[[list[Space]], object]:
    return lambda spaces: operations.copy(spaces[0], src, spaces[1], dst, overwrite=overwrite)


OVER_FULL = changed(gone=(b"full",), add=below(b"dir", b"full"))
CASES = {
    "move file": Case(move(b"file", b"moved"), (changed(gone=(b"file",)), changed(add={b"moved": TREE[b"file"]}))),
    "move file over": Case(
        move(b"file", b"other", overwrite=True),
        (changed(gone=(b"file",)), changed(add={b"other": TREE[b"file"]})),
        later=(b"file", b"other"),
        kept=(b"the old content", b"another file"),
    ),
    "move dir": Case(move(b"dir", b"moved"), (changed(gone=(b"dir",)), changed(add=below(b"dir", b"moved")))),
    "move dir over": Case(
        move(b"dir", b"full", overwrite=True),
        (changed(gone=(b"dir",)), OVER_FULL),
        kept=(b"1", b"22", b"must not get lost"),
    ),
    "copy file over": Case(
        copy(b"file", b"other", overwrite=True),
        (TREE, changed(add={b"other": TREE[b"file"]})),
        later=(b"file", b"other"),
        kept=(b"the old content", b"another file"),
    ),
    "copy dir over": Case(
        copy(b"dir", b"full", overwrite=True), (TREE, OVER_FULL), kept=(b"1", b"must not get lost")
    ),
    "replace": Case(
        lambda spaces: put(spaces[1], b"file", NEW),
        (TREE, changed(add={b"file": NEW})),
        later=(b"later", b"file"),
    ),
    "delete": Case(lambda spaces: operations.delete(spaces[0], b"dir"), (changed(gone=(b"dir",)), TREE), kept=(b"1",)),
    "over": Case(
        lambda spaces: operations.move(spaces[0], b"file", spaces[0], b"other", overwrite=True),
        (changed(gone=(b"file",), add={b"other": TREE[b"file"]}), TREE),
        later=(b"other", b"later"),
        kept=(b"the old content", b"another file"),
    ),
}  # fmt: skip


BOTH = (0, 1)
TURNS = [pytest.param(name, BOTH, id=name) for name in CASES] + [
    pytest.param(name, (number,), id=f"{name}, lease of the {end} alone")
    for name in CASES
    if name.startswith("move")
    for number, end in enumerate(("source", "destination"))
]


@pytest.fixture
def memory() -> Iterator[Path]:
    """The order of calls is what counts, and hundreds of worlds are made."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fsd-taken-") as base:
        yield Path(base)


def grown(base: Path, clock: Clock) -> Pair:
    pair = Pair(base, clock, lambda root: fill(root, TREE))
    for spaces in pair.hosts:
        for space in spaces:
            sweep(space)
    pair.rest()
    return pair


def strike(pair: Pair, operate: Callable[[list[Space]], object], struck: Struck) -> bool:
    """Whether the first host was stopped or killed at all."""

    def operated(_ready: object) -> None:
        with suppress(NotYetKnown, FileNotFoundError):
            operate(pair.hosts[0])

    message = killpoints._run(lambda: None, operated, struck, calls=sorted(SEEN))
    assert message is None, message
    return bool(struck.call)


def trees(pair: Pair) -> list[Files]:
    return [contents(space.root) for space in pair.hosts[0]]


def everything(pair: Pair) -> set[bytes | None]:
    found: set[bytes | None] = set()
    for space in pair.hosts[0]:
        found |= set(contents(space.root).values())
        for place in (b".fsd/trash/files", b".fsd/versions"):
            found |= set(contents(os.path.join(space.root, place)).values())
    return found


def staged(pair: Pair) -> list[bytes]:
    """What lies in staging, of any host."""
    return [
        os.path.join(top, name)
        for space in pair.hosts[0]
        for top, _, names in os.walk(os.path.join(space.root, b".fsd/staging"))
        for name in names
    ]


def is_right(pair: Pair, host: int, which: Iterable[int] = (0, 1)) -> None:
    for number in which:
        sweep(pair.hosts[host][number])
        assert differences(pair.hosts[host][number]) == []


@pytest.mark.parametrize(("name", "which"), TURNS)
def test_a_host_that_is_killed_is_tidied_up_after(
    memory: Path, clock: Clock, name: str, which: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    """Where the second host takes only one of two leases, the first one is born again with the other: they end what
    is theirs each."""
    case, index = CASES[name], 0
    step = 1 if request.config.getoption("--big") else 2 if which == BOTH else 4
    while True:
        pair = grown(memory / "world", clock)
        if not strike(pair, case.operate, Struck(index, lambda: None, kill=True)):
            assert trees(pair) == list(case.trees)
            break
        pair.hand_over(1, which)
        pair.replay(1)
        if which != (0, 1):
            pair.replay(0)
            pair.replay(1)
        found = trees(pair)
        where = f"{name}, killed at seen call {index}: {[describe(each) for each in found]}"
        fitting = [k for k, allowed in enumerate((case.trees, (TREE, TREE))) if list(allowed) == found]
        assert fitting, where
        for content in case.kept:
            assert content in everything(pair), (where, content)
        assert staged(pair) == [], where
        for number in which:
            put(pair.hosts[1][number], case.later[number], LATER)
        is_right(pair, 1, which)
        then = trees(pair)
        pair.hand_over(0, which)
        pair.replay(0)
        assert trees(pair) == then, where
        is_right(pair, 0)
        pair.close()
        index += step
    assert index > 1
    print(f"{name}: killed at {index} calls")


@pytest.mark.parametrize(("name", "which"), TURNS)
def test_a_host_that_goes_on_is_fenced(
    memory: Path, clock: Clock, name: str, which: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    """It was stopped in front of a call, and another host took over, ended it and wrote: nothing of that is lost,
    now and when the first host has its leases again."""
    case, index = CASES[name], 0
    step = 1 if request.config.getoption("--big") else 2 if which == BOTH else 4
    while True:
        pair = grown(memory / "world", clock)

        def taken(pair: Pair = pair) -> None:
            pair.hand_over(1, which)
            pair.replay(1)
            for number in which:
                put(pair.hosts[1][number], case.later[number], LATER + b"%d" % number)
            pair.rest()

        if not strike(
            pair, case.operate, Struck(index, taken, kill=False, calls=SEEN if which == BOTH else OF_TREES)
        ):
            pair.close()
            break
        where = f"{name}, stopped at seen call {index}"
        for again in range(2):
            for number in which:
                assert LATER + b"%d" % number in everything(pair), (
                    where, again, [describe(each) for each in trees(pair)],
                )  # fmt: skip
            for content in case.kept:
                assert content in everything(pair), (where, again, content)
            if not again:
                pair.replay(1)
                pair.hand_over(0, which)
                pair.replay(0)
        assert staged(pair) == [], where
        is_right(pair, 0)
        pair.close()
        index += step
    print(f"{name}: stopped at {index} calls")


BEFORE = {"{n}a": SMALL, "{n}b": LARGE, "{n}c": b"untouched"}
PATCHES = {
    "attributes": ({"{n}a": b"new", "{n}x": b"x"}, ()),
    "overflow": ({"{n}a": LARGE, "{n}y": LARGE + b"2"}, ()),
    "removes": ({"{n}x": b"x"}, ("{n}a", "{n}b")),
    "no more overflow": ({"{n}x": b"x", "{n}b": b"small now"}, ()),
}
SAME = "the same"


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
@pytest.mark.parametrize("name", PATCHES)
def test_properties_that_were_set_later_stay(memory: Path, clock: Clock, name: str, kill: bool) -> None:
    """A PROPPATCH that was cut off is taken back whole by the next host before it changes properties itself, and by
    nobody later."""
    changes, removed = PATCHES[name]
    after = {key: value for key, value in BEFORE.items() if key not in removed} | changes
    index = 0
    while True:
        pair = grown(memory / "world", clock)
        properties.update(pair.hosts[0][0], b"file", BEFORE)
        pair.rest()
        known: list[dict[str, bytes]] = []

        def taken(pair: Pair = pair, known: list[dict[str, bytes]] = known) -> None:
            pair.hand_over(1)
            space = pair.hosts[1][0]
            # Without a replay: whoever changes them does not wait for one. The same value as the first host's is no
            # sign that it was the first host that has set it.
            later = {key: changes[key] for key in sorted(changes)[:1]} | {"{n}later": LARGE + b"3"}
            properties.update(space, b"file", later)
            known.append(properties.get_all(space, b"file"))
            assert known[0] in (BEFORE | later, after | later)
            pair.rest()

        if not strike(
            pair,
            lambda spaces: properties.update(spaces[0], b"file", changes, removed),
            Struck(index, taken, kill=kill),
        ):
            pair.close()
            break
        if kill:
            taken()
        for host in (1, 0):
            if host == 0:
                pair.hand_over(0)
            pair.replay(host)
            for seen in pair.hosts:
                found = properties.get_all(seen[0], b"file")
                if not kill:  # the one call that it was stopped at is made: a value of one name
                    assert (
                        sum(found.get(key) != known[0].get(key) for key in found.keys() | known[0].keys())
                        <= 1
                    )
                    assert found["{n}later"] == known[0]["{n}later"], (name, index)
                else:
                    assert found == known[0], (name, index)
        assert staged(pair) == []
        pair.close()
        index += 1
    assert index > 2


def test_a_change_that_began_under_an_earlier_lease_goes_no_further(memory: Path, clock: Clock) -> None:
    """The host lost the lease and has it again meanwhile: what it saw before is as old as any other host's."""
    index = 0
    while True:
        pair = grown(memory / "world", clock)

        def there_and_back(pair: Pair = pair) -> None:
            pair.hand_over(1)
            pair.replay(1)
            properties.update(pair.hosts[1][0], b"file", {"{n}later": b"1", "{n}more": LARGE})
            put(pair.hosts[1][0], b"other", LATER)
            pair.hand_over(0)
            pair.rest()

        if not strike(
            pair,
            lambda spaces: properties.update(
                spaces[0], b"file", {f"{{n}}{n}": LARGE for n in range(3)} | {"{n}s": b"s"}
            ),
            Struck(index, there_and_back, kill=False, calls=OF_TREES),
        ):
            pair.close()
            break
        pair.replay(0)
        found = properties.get_all(pair.hosts[0][0], b"file")
        assert (found["{n}later"], found["{n}more"]) == (b"1", LARGE), index
        pair.close()
        index += 1
    assert index > 2


def test_properties_of_another_worker_are_not_taken_back(memory: Path, clock: Clock) -> None:
    """On one host: a worker was killed, another one has set them, and the first one's are settled then."""
    changes = {"{n}a": b"new", "{n}x": b"x", "{n}y": LARGE}
    index = 0
    while True:
        pair = grown(memory / "world", clock)
        space = pair.hosts[0][0]
        properties.update(space, b"file", BEFORE)
        pair.rest()
        if not strike(
            pair,
            lambda spaces: properties.update(spaces[0], b"file", changes),
            Struck(index, lambda: None, kill=True),
        ):
            pair.close()
            break
        properties.update(space, b"file", {"{n}a": b"new", "{n}z": b"later"})
        found = properties.get_all(space, b"file")
        assert found in (BEFORE | {"{n}a": b"new", "{n}z": b"later"}, BEFORE | changes | {"{n}z": b"later"})
        pair.replay(0)
        assert properties.get_all(space, b"file") == found
        pair.close()
        index += 1
    assert index > 2


def test_ids_sizes_and_numbers_of_the_next_host(memory: Path, clock: Clock) -> None:
    """Whatever its index knows: nothing that exists is ever not found, or missing in a listing, and sizes and ids are
    what the disk says, during the sweep as well."""
    pair = grown(memory / "world", clock)
    ids = {path: tree.lookup(pair.hosts[0][0], path).id for path in TREE}
    put(pair.hosts[0][0], b"dir/new", NEW)
    pair.hand_over(1)
    space = pair.hosts[1][0]
    for path in (*TREE, b"dir/new"):
        entry = tree.lookup(space, path)
        assert path not in ids or entry.id == ids[path]
    assert {each.path for each in tree.listing(space, b"dir")[1]} == {b"dir/one", b"dir/sub", b"dir/new"}
    drain(space)
    is_right(pair, 1)
    pair.close()
