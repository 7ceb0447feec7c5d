"""One HTTP worker process."""

import logging
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from dav.app import App, Options
from dav.auth.basic import BasicAuth
from dav.auth.cache import CredentialCache
from dav.auth.forwarded import TrustedProxies
from dav.auth.throttle import Throttle
from dav.server import Listen, Server, StockServer, make
from fsd.core import quota, replay, versions
from fsd.core.registry import Registry
from fsd.service import logs
from fsd.service.config import Settings
from fsd.service.pulse import EVERY
from fsd.service.signals import Awaited

log = logging.getLogger(__name__)

_STOP_SECONDS = 25.0
_DESCRIPTORS = 65536
_SWITCH_SECONDS = 0.001
"""A fifth of Python's default: the thread that receives requests waits less for one that computes."""


def build_app(settings: Settings) -> App:
    """The application for these settings; opens files and databases, so call it after the fork."""
    registry = Registry(settings.state)
    run = settings.state / "run"
    run.mkdir(exist_ok=True, mode=0o700)
    auth = BasicAuth(
        registry.accounts,
        CredentialCache(settings.auth_cache, settings.auth_cache_entries),
        Throttle(run / "logins", settings.auth_failures),
        settings.auth_realm,
    )
    options = Options(
        settings.http_max_body,
        settings.http_public_url,
        settings.http_fast,
        settings.http_listeners,
        settings.durability == "fsync",
    )
    app = App(registry, auth, TrustedProxies(settings.http_trusted_proxies), options)
    quota.use(registry.state_dir, lambda space: app.views.latest.quota(space), settings.disk_reserve)
    versions.use(registry.state_dir, settings.versions_keep)
    return app


def _near(proxies: TrustedProxies) -> Callable[[str], bool]:
    """Addresses that stand for many people: trusted proxies, and whatever runs on this machine."""
    return lambda address: address.startswith("127.") or address == "::1" or proxies.trusts(address)


def build_server(
    settings: Settings, *, app: App | None = None, slot: socket.socket | None = None
) -> Server | StockServer:
    """A server for these settings, not yet listening; ``slot`` is a bound socket to listen on."""
    certificate: Path | None = settings.tls_cert
    app = app or build_app(settings)
    server = make(
        Listen(
            host=settings.listen.host,
            port=settings.listen.port,
            threads=settings.http_threads,
            inherited=slot,
            certificate=certificate,
            private_key=settings.tls_key if settings.tls_key is not None else certificate,
            stop_seconds=_STOP_SECONDS,
            idle_seconds=settings.http_timeout,
            per_address=settings.http_per_address,
            trusted=_near(TrustedProxies(settings.http_trusted_proxies)),
        ),
        app,
        settings.http_loop,
    )
    if isinstance(server, Server):
        server.streams.source = app.events
    return server


def _raise_descriptor_limit() -> None:
    """Every connection takes a descriptor; the usual soft limit of 1024 is for programs that use select(2)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _replay(registry: Registry) -> None:
    """Settle what a crash cut off; serving does not wait for it."""
    for record in registry.spaces():
        try:
            replay.replay(registry.open(record.id), registry.open)
        except OSError as error:
            log.info("the changes under way in space %s wait: %s", record.id, error)


def run_worker(settings: Settings, index: int, slot: socket.socket, beat: Callable[[], None]) -> None:
    """Serve until SIGTERM; requests under way are finished first.  Call it in a process of its own.

    ``beat`` is called each second by a thread that waits for nothing: silence means that the process is stopped, or
    that one of its threads computes without ever letting another one on.
    """
    logs.setup(f"web-{index}", settings.log_format, settings.log_level)
    ours = settings.http_loop != "stock"
    logs.audit_to_file(settings.state, buffered=ours, listings=True)
    _raise_descriptor_limit()
    sys.setswitchinterval(_SWITCH_SECONDS)
    # Blocked in all threads and waited for in this one: a handler would run only when this thread wakes.
    told_to_end = Awaited({signal.SIGTERM})
    app = build_app(settings)
    server = build_server(settings, app=app, slot=slot)
    if isinstance(server, Server):
        server.chores.append(logs.flush_audit)
    server.prepare()
    threading.Thread(target=_replay, args=(app.registry,), name="replay", daemon=True).start()
    thread = threading.Thread(target=server.serve, name="front", daemon=True)
    thread.start()
    while told_to_end.wait(EVERY) is None and thread.is_alive():
        beat()
    server.stop()
    log.debug("stopped")
