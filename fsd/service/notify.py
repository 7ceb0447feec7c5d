"""sd_notify(3): tell systemd that the service is up, alive, reloading or stopping. Does nothing elsewhere."""

from __future__ import annotations

import os
import socket
import time


def notify(*lines: str) -> bool:
    """Send state lines such as `READY=1`; False when nobody listens. Never raises: supervision must not stop work."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or address[0] not in "/@":
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto("\n".join(lines).encode(), address)
    except OSError:
        return False
    return True


def ready(status: str = "") -> bool:
    """Say that the service answers."""
    return notify("READY=1", f"MAINPID={os.getpid()}", *([f"STATUS={status}"] if status else []))


def reloading() -> bool:
    """Say that the configuration is being read again; `ready` ends it."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> bool:
    """Say that the service is going down."""
    return notify("STOPPING=1")


def alive() -> bool:
    """Feed the watchdog."""
    return notify("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds between two `alive` that keep the watchdog content (half its time); None when there is none."""
    try:
        limit = int(os.environ["WATCHDOG_USEC"])
        owner = int(os.environ.get("WATCHDOG_PID", os.getpid()))
    except (KeyError, ValueError):
        return None
    return limit / 2_000_000 if limit > 0 and owner == os.getpid() else None
