"""Throttle, credential cache and trusted proxies."""

from __future__ import annotations

from dav.auth.cache import CredentialCache
from dav.auth.forwarded import TrustedProxies
from dav.auth.throttle import Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_failures_are_slowed_in_all_processes_and_forgiven(tmp_path):
    clock = Clock()
    one, two = (Throttle(tmp_path / "logins", 3, clock) for _ in range(2))
    for _ in range(2):
        one.failed("account a", "address x")
    assert two.wait("account a", "address x") == 0
    one.failed("account a", "address x")
    assert two.wait("account a") == 1 and two.wait("address x") == 1
    assert two.wait("account b", "address y") == 0
    for _ in range(20):
        two.failed("account a")
    assert 30 < one.wait("account a") <= 60
    clock.now += 3600
    assert one.wait("account a") == 0
    one.close()
    two.close()


def test_success_forgets_the_account(tmp_path):
    throttle = Throttle(tmp_path / "logins", 1, Clock())
    throttle.failed("account a")
    assert throttle.wait("account a")
    throttle.succeeded("account a")
    assert throttle.wait("account a") == 0
    throttle.close()


def test_a_damaged_file_is_replaced(tmp_path):
    (tmp_path / "logins").write_bytes(b"junk")
    throttle = Throttle(tmp_path / "logins", 1)
    throttle.failed("a")
    assert throttle.wait("a") >= 1
    throttle.close()


def test_a_full_disk_leaves_a_throttle_of_the_process_alone(tmp_path, allow_log):
    allow_log("counted in each process alone")
    throttle = Throttle(tmp_path / "missing" / "logins", 1)
    throttle.failed("a")
    assert throttle.wait("a") >= 1
    throttle.close()


def test_cache_is_bounded_and_expires():
    clock = Clock()
    cache = CredentialCache(60, 2, clock)
    for name in ("a", "b", "c"):
        cache.put(f"Basic {name}", name, name, 1)
    assert len(cache) == 2 and cache.get("Basic a") is None
    assert cache.get("Basic c").name == "c"
    cache.put("Basic wrong", "w", None, None)
    clock.now += 11
    assert cache.get("Basic wrong") is None and cache.get("Basic c") is not None
    clock.now += 60
    assert cache.get("Basic c") is None


def environ(**more):
    return {"REMOTE_ADDR": "10.0.0.1", "wsgi.url_scheme": "http", **more}


def test_forwarded_headers_of_strangers_are_dropped():
    env = environ(
        HTTP_X_FORWARDED_FOR="1.1.1.1", HTTP_X_FORWARDED_HOST="evil", HTTP_X_FORWARDED_PROTO="https"
    )
    TrustedProxies([]).apply(env)
    assert env == environ()
    TrustedProxies(["192.168.0.0/16"]).apply(env)
    assert env == environ()


def test_a_trusted_proxy_is_believed_up_to_the_first_stranger():
    env = environ(
        HTTP_X_FORWARDED_FOR="6.6.6.6, 1.1.1.1, 10.0.0.7",
        HTTP_X_FORWARDED_HOST="public.example",
        HTTP_X_FORWARDED_PROTO="https",
    )
    TrustedProxies(["10.0.0.0/8"]).apply(env)
    assert (env["REMOTE_ADDR"], env["wsgi.url_scheme"]) == ("1.1.1.1", "https")
    assert env["fsd.forwarded_host"] == "public.example"


def test_junk_from_a_trusted_proxy_changes_nothing():
    env = environ(HTTP_X_FORWARDED_FOR="unknown", HTTP_X_FORWARDED_PROTO="gopher")
    TrustedProxies(["10.0.0.1"]).apply(env)
    assert env == environ()
