"""Two spaces that two hosts work on, one each: what goes from one to the other, while hosts are stopped and killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.davclient import Answer, Dav
from tests.support.hosts import Host, network
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
LOCK = (
    b'<?xml version="1.0"?><d:lockinfo xmlns:d="DAV:"><d:lockscope><d:exclusive/></d:lockscope>'
    b"<d:locktype><d:write/></d:locktype></d:lockinfo>"
)


class Patient(Dav):
    """A client that asks again after a 503, as clients do."""

    def request(self, *args: Any, **more: Any) -> Answer:
        def asked() -> Answer | None:
            answer = super(Patient, self).request(*args, **more)
            return None if answer.status == 503 else answer

        return wait_for(asked, timeout=60, every=0.2, what="somebody who works on the space")


@dataclass
class Owners:
    """Host one works on the space `a`, host two on `b`."""

    hosts: list[Host]
    records: list[dict[str, Any]]

    def dav(self, host: int, space: int) -> Dav:
        """A space through a host."""
        return self.hosts[host].space_dav(self.records[space])

    def patient(self, host: int, space: int) -> Dav:
        """The same, asked again after a 503."""
        dav = self.dav(host, space)
        return Patient(dav.host, dav.port, dav.user, dav.password, dav.prefix, dav.timeout)

    def root(self, space: int) -> Path:
        return Path(self.records[space]["path"])

    def held(self) -> list[str]:
        """Who has which lease, as the first host that answers says."""
        told: dict[str, dict[str, Any]] = {}
        for host in self.hosts:
            for space in host.json_any("status")["spaces"]:
                if (space.get("lease") or {}).get("held"):
                    told[space["name"]] = {"host": host.name}
        return [told.get(name, {}).get("host", "") for name in ("a", "b")]

    def write(
        self, host: int, space: int, method: str, path: bytes, body: bytes | None = None, **headers: str
    ) -> int:
        """The status of a request, asked again while nobody works on the space."""

        def asked() -> int | None:
            status = self.dav(host, space).request(method, path, body, headers).status
            return None if status == 503 else status

        return int(wait_for(asked, timeout=60, every=0.2, what="somebody who works on the space"))


def _has(host: Host, name: str) -> bool:
    found = [space for space in host.json_any("status")["spaces"] if space["name"] == name]
    return bool(found and (found[0].get("lease") or {}).get("held"))


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[Owners]:
    """Each host was the first to have its space."""
    shared = tmp_path / "shared"
    (shared / "data").mkdir(parents=True)
    with network() as net:
        hosts: list[Host] = []
        try:
            for name in ("one", "two"):
                hosts.append(Host(tmp_path / name, net, name, shared))
                hosts[-1].settings |= {"FSD_WATCH_SOURCE": "poll", "FSD_WATCH_STATS": "50"}
            hosts[0].start()
            hosts[0].fsd("space", "create", "a")
            wait_for(lambda: _has(hosts[0], "a"), timeout=60, what="the first host's lease")
            hosts[1].like(hosts[0])
            hosts[1].start()
            hosts[1].fsd("space", "create", "b")
            made = Owners(hosts, [hosts[0].space("a"), hosts[1].space("b")])
            wait_for(lambda: made.held()[1] == "two", timeout=60, what="the second host's lease")
            hosts[0].like(hosts[1])
            held: list[list[str]] = [[]]

            def settled() -> bool:
                held[0] = made.held()
                assert held[0] == ["one", "two"], held[0]
                return True

            wait_for(settled, timeout=20, what="a space for each")
            for space in (0, 1):
                there = made.dav(1 - space, space)
                wait_for(
                    lambda there=there: there.request("PROPFIND", b"", headers={"Depth": "0"}).status == 207,
                    timeout=60, what="both spaces on both hosts",
                )  # fmt: skip
            yield made
        finally:
            for host in hosts:
                host.close()


def test_what_goes_from_one_owner_to_the_other(owners: Owners) -> None:
    """By way of either host, files and folders, new and over something, with locks and conditions."""
    for host in (0, 1):
        source, target = owners.patient(host, 0), owners.patient(host, 1)
        name = b"%d" % host
        assert source.request("PUT", b"f" + name, b"content " + name).status == 201
        assert source.request("MKCOL", b"d" + name).status == 201
        assert source.request("PUT", b"d" + name + b"/in", b"deep").status == 201

        def to(path: bytes, target: Dav = target, **more: str) -> dict[str, str]:
            return {"Destination": target.url(path)} | more

        assert source.request("COPY", b"f" + name, headers=to(b"copy" + name)).status == 201
        assert target.request("GET", b"copy" + name).body == b"content " + name
        assert source.request("COPY", b"d" + name, headers=to(b"dcopy" + name)).status == 201
        assert target.request("GET", b"dcopy" + name + b"/in").body == b"deep"
        assert source.request("MOVE", b"f" + name, headers=to(b"copy" + name, Overwrite="F")).status == 412
        assert source.request("MOVE", b"f" + name, headers=to(b"none/f")).status == 409
        assert (
            source.request("MOVE", b"f" + name, headers=to(b"f" + name) | {"If-Match": '"no"'}).status == 412
        )
        assert source.request("GET", b"f" + name).body == b"content " + name
        locked = target.request("LOCK", b"copy" + name, LOCK, {"Timeout": "Second-600"})
        assert source.request("MOVE", b"f" + name, headers=to(b"copy" + name)).status == 423
        token = locked.headers["lock-token"]
        assert (
            source.request(
                "MOVE",
                b"f" + name,
                headers=to(b"copy" + name, If=f"<{target.url(b'copy' + name)}> ({token})"),
            ).status
            == 204
        )
        assert source.request("GET", b"f" + name).status == 404
        assert source.request("MOVE", b"d" + name, headers=to(b"moved" + name)).status == 201
        assert target.request("GET", b"moved" + name + b"/in").body == b"deep"
        assert {each.path for each in source.propfind(b"", 1)} <= {b""}
        for there in (0, 1):
            seen = owners.patient(there, 1).propfind(b"", 1)
            assert {each.path for each in seen if b"moved" in each.path or each.path.startswith(b"copy")} >= {
                b"moved" + name,
                b"copy" + name,
            }


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize("struck", [0, 1], ids=["source", "destination"])
def test_an_owner_is_struck_in_the_middle_of_moves(owners: Owners, struck: int, how: str) -> None:
    """Moves of many files go on while the source's or the destination's owner is killed, or stopped and goes on later.
    Each file is whole in one of the two spaces, at any time, or in both if its move was not answered; none is gone."""
    host, other = owners.hosts[struck], 1 - struck
    names = [b"f%02d" % number for number in range(24)]
    for name in names:
        assert owners.write(other, 0, "PUT", name, b"content of " + name) in (201, 204)
    assert owners.write(other, 0, "MKCOL", b"d") == 201
    assert owners.write(other, 0, "PUT", b"d/in", b"deep") == 201
    target = owners.dav(other, 1)
    begun = 0
    tree = [host._pid, *host.children()]
    for number, name in enumerate(names):
        if number == 6:
            if how == "killed":
                host.kill()
            else:
                for pid in tree:
                    os.kill(pid, signal.SIGSTOP)
        if number == 18 and how == "stopped":
            for pid in tree:
                os.kill(pid, signal.SIGCONT)
        status = owners.write(other, 0, "MOVE", name, Destination=target.url(name))
        # Asked again after a 503, the first one may have been done.
        assert status in (201, 204, 404), (name, status)
        begun += status != 404
        assert target.request("GET", name).body == b"content of " + name
        found = owners.dav(other, 1).request("PROPFIND", name, headers={"Depth": "0"}).status
        assert found in (207, 503), (name, found)
    assert owners.write(other, 0, "MOVE", b"d", Destination=target.url(b"d")) in (201, 404)
    assert begun > 12
    if how == "killed":
        host.start()
    wait_for(lambda: "" not in owners.held(), timeout=60, what="an owner of each space")

    def agree() -> bool:
        for space in (0, 1):
            shown = [owners.dav(each, space).propfind(b"", 1) for each in (0, 1)]
            on_disk = {os.fsencode(each) for each in os.listdir(owners.root(space))} - {b".fsd"}
            assert shown[0] == shown[1] and {each.path for each in shown[0][1:]} == on_disk
        return True

    wait_for(agree, timeout=60, what="two hosts that agree")
    for name in names:
        assert (owners.root(1) / os.fsdecode(name)).read_bytes() == b"content of " + name
    assert (owners.root(1) / "d/in").read_bytes() == b"deep"
    for space in (0, 1):
        left = [
            each
            for each in (owners.root(space) / ".fsd/staging").rglob("*")
            if each.is_file() and each.suffix != ".intent"
        ]
        wait_for(lambda left=left: not any(each.exists() for each in left), timeout=40, what="nothing staged")
    host.allow_log(".*")
    owners.hosts[other].allow_log(".*")
