"""`fsd serve`: the supervisor with its HTTP workers, watcher and jobs."""

from __future__ import annotations

import argparse
import faulthandler
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from fsd.cli import serve_mounts
from fsd.cli.common import note, say, settings_of
from fsd.cli.init import announce, data_argument, ensure_initialised
from fsd.cli.serve_pulses import Pulses
from fsd.core.errors import USAGE, UserError
from fsd.service import logs, metrics, notify, supervisor
from fsd.service.config import Settings
from fsd.service.options import Address
from fsd.service.pulse import Listened

_DRAIN = 30.0
_CERTIFICATE_DAYS = 3650


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments; each is a setting, and the defaults are the settings'."""
    parser.add_argument("directory", metavar="DATA", nargs="?", help="the data root")
    parser.add_argument("--listen", metavar="HOST:PORT", help="where to serve HTTP (127.0.0.1:9200)")
    parser.add_argument("--workers", metavar="N", help="HTTP worker processes (2)")
    parser.add_argument("--only", metavar="PARTS", help="some of web,watcher,jobs,mounts")
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate chain (PEM)")
    parser.add_argument("--tls-key", metavar="FILE", help="private key (PEM)")
    parser.add_argument(
        "--tls-self-signed", action="store_const", const=True, help="make and use a certificate of our own"
    )
    parser.add_argument(
        "--behind-proxy",
        action="store_const",
        const=True,
        help="a proxy in front does TLS: any address may be used",
    )
    parser.add_argument(
        "--ops-listen", metavar="HOST:PORT", help="health and metrics (127.0.0.1:9209), off for none"
    )
    parser.add_argument(
        "--durability", metavar="HOW", help="fsync: a PUT is on the disk when it is answered; or none"
    )
    parser.add_argument(
        "--http", metavar="LOOP", help="who holds the connections: fsd, or stock (cheroot alone)"
    )
    parser.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    parser.add_argument("--log-format", metavar="FORMAT", help="text, json or journal")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or ctrl-C; 4 if a server runs on this data already."""
    args.data = data_argument(args)
    settings = _settings(args)
    logs.setup("serve", settings.log_format, settings.log_level)
    run_dir = settings.state / "run"
    held = [supervisor.lock(run_dir)] if run_dir.is_dir() else []
    sockets: list[socket.socket] = []
    slots: dict[str, socket.socket] = {}
    untold: list[str] = []
    try:
        # Before anything is set up: who got an address or a directory wrong finds nothing changed.
        alone = _alone(settings)
        if "web" in settings.only:
            sockets.append(supervisor.reserve(settings.listen.host, settings.listen.port))
            settings = replace(settings, listen=Address(settings.listen.host, sockets[0].getsockname()[1]))
        _check_operations(settings)
        password = ensure_initialised(settings)
        untold += [password] if password is not None else []
        held = held or [supervisor.lock(run_dir)]
        held += alone or _alone(settings)  # the directory is there now
        if sockets:
            slots = supervisor.slots(sockets[0], settings.workers)
        settings = _with_certificate(settings)
        for name in settings.unknown_environment:
            note(f"The environment variable {name} is not a setting of fsd.")
        metrics.prepare(settings.workers)
        return supervisor.Supervisor(_plan(args, settings, untold, slots), held, sockets, slots).run()
    finally:
        if held:
            serve_mounts.clear(settings)
        if untold:  # it could not start; the password that was made exists all the same
            announce(settings, untold.pop())
        for each in (*sockets, *slots.values()):
            each.close()
        for lock in held:
            os.close(lock)


def _alone(settings: Settings) -> list[int]:
    """The lock that keeps other servers of this machine off the data root, if there can be one: hosts share it."""
    held = None if settings.cluster_shared else supervisor.lock_data(settings.data)
    return [] if held is None else [held]


def _settings(args: argparse.Namespace) -> Settings:
    settings = settings_of(
        args,
        **{
            "listen": args.listen,
            "workers": args.workers,
            "only": args.only,
            "tls.cert": args.tls_cert,
            "tls.key": args.tls_key,
            "tls.self_signed": args.tls_self_signed,
            "behind_proxy": args.behind_proxy,
            "ops.listen": args.ops_listen,
            "durability": args.durability,
            "http.loop": args.http,
            "log.level": args.log_level,
            "log.format": args.log_format,
        },
    )
    if not settings.only:
        raise UserError("--only names no part: web, watcher, jobs or mounts.", USAGE)
    check_exposure(settings)
    return settings


def check_exposure(settings: Settings) -> None:
    """Refuse passwords in the clear on a network, and certificates that cannot be used. UserError."""
    tls = settings.tls_cert is not None or settings.tls_self_signed
    if "web" in settings.only and not (settings.listen.is_loopback or tls or settings.behind_proxy):
        raise UserError(
            f"{settings.listen} can be reached from other machines and would carry passwords in the clear: "
            "give --tls-cert or --tls-self-signed, or --behind-proxy if a proxy in front does TLS.",
            USAGE,
        )
    if settings.tls_key is not None and settings.tls_cert is None:
        raise UserError("A private key was given without its certificate.", USAGE)
    if settings.tls_cert is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
        except (OSError, ValueError) as error:
            reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            raise UserError(f"The certificate {settings.tls_cert} cannot be used: {reason}.") from None


def _with_certificate(settings: Settings) -> Settings:
    """With --tls-self-signed and no other: a certificate in the state directory, made once."""
    if not settings.tls_self_signed or settings.tls_cert is not None:
        return settings
    place = settings.state / "tls"
    cert, key = place / "cert.pem", place / "key.pem"
    if not cert.exists() or not key.exists():
        _make_certificate(place, cert, key, settings.listen.host)
        note(f"A self-signed certificate was made: {cert}")
    return replace(settings, tls_cert=cert, tls_key=key)


def _make_certificate(place: Path, cert: Path, key: Path, host: str) -> None:
    if shutil.which("openssl") is None:
        raise UserError(
            "Making a certificate needs the program 'openssl' (package openssl); or give --tls-cert."
        )
    place.mkdir(mode=0o700, exist_ok=True)
    kind = "IP" if host.replace(".", "").isdigit() or ":" in host else "DNS"
    names = f"subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1,DNS:{os.uname().nodename},{kind}:{host}"
    new = [path.with_suffix(".new") for path in (cert, key)]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    command += ["-days", str(_CERTIFICATE_DAYS), "-subj", f"/CN={os.uname().nodename}", "-addext", names]
    mask = os.umask(0o077)
    try:
        done = subprocess.run(
            [*command, "-out", str(new[0]), "-keyout", str(new[1])],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.umask(mask)
    if done.returncode != 0:
        raise UserError(f"openssl could not make a certificate: {done.stderr.strip().splitlines()[-1:]}")
    new[1].replace(key)
    new[0].replace(cert)


def _check_operations(settings: Settings) -> None:
    """A taken operations address is an error only if somebody chose it: two servers may share a machine."""
    if "jobs" in settings.only and settings.ops_listen is not None and "ops.listen" in settings.origins:
        supervisor.reserve(settings.ops_listen.host, settings.ops_listen.port).close()


def _plan(
    args: argparse.Namespace, first: Settings, untold: list[str], slots: Mapping[str, socket.socket]
) -> supervisor.Plan:
    """`untold` holds the password that a first start has made, until it is shown."""
    current = first

    previous = first
    pulses = Pulses()

    def mains() -> Mapping[str, Callable[[], None]]:
        pulses.follow(current)
        return children(current, slots, pulses)

    def reload() -> None:
        nonlocal current, previous
        again = _with_certificate(_settings(args))
        # What was bound at the start stays: another address needs a restart.
        previous, current = (
            current,
            replace(
                again,
                data=first.data,
                state=first.state,
                listen=first.listen,
                workers=min(again.workers, first.workers),
            ),
        )

    def ready() -> None:
        scheme = "https" if first.tls_cert is not None else "http"
        if "web" in first.only:
            say(f"fsd serves {first.data} at {scheme}://{first.listen}/")
        else:
            say(f"fsd runs {', '.join(first.only)} for {first.data}")
        if untold:
            announce(first, untold.pop())

    return supervisor.Plan(
        run_dir=first.state / "run",
        children=mains,
        drain_seconds=_DRAIN,
        lasting=lambda name: serve_mounts.same(name, previous, current),
        reload=reload,
        ready=ready,
        notify=notify.notify,
        listened=pulses,
        watchdog=notify.watchdog_interval(),
    )


def children(
    settings: Settings, slots: Mapping[str, socket.socket], pulses: Pulses
) -> Mapping[str, Callable[[], None]]:
    """What runs in each process. The modules are loaded here, before the fork, so that their memory is shared."""
    mains: dict[str, Callable[[], None]] = {}
    if "web" in settings.only:
        from dav.main import run_worker

        for index in range(settings.workers):
            name = f"web-{index}"
            mains[name] = partial(_web, run_worker, settings, index, slots[name], pulses[name])
    if "watcher" in settings.only:
        from watcher.main import run as watch

        mains["watcher"] = partial(_child, "watcher", watch, settings)
    if "jobs" in settings.only:
        from fsd.service.jobs import run as work

        mains["jobs"] = partial(_child, "jobs", work, settings)
    if "mounts" in settings.only:
        mains |= serve_mounts.children(settings, pulses)
    return mains


def _web(
    run_worker: Callable[[Settings, int, socket.socket, Callable[[], None]], None],
    settings: Settings,
    index: int,
    slot: socket.socket,
    pulse: Listened,
) -> None:
    metrics.use(index)
    beat = pulse.beating()
    _child(f"web-{index}", lambda settings: run_worker(settings, index, slot, beat), settings)


def _child(name: str, main: Callable[[Settings], None], settings: Settings) -> None:
    logs.setup(name, settings.log_format, settings.log_level)
    logs.audit_to_file(settings.state)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    main(settings)
