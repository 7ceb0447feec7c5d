"""Forwarded headers: believed from configured proxies, stripped from everybody else."""

import ipaddress
from collections.abc import Iterable
from typing import Any

_HEADERS = (
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_FORWARDED_PROTO",
    "HTTP_X_FORWARDED_HOST",
    "HTTP_X_FORWARDED_PORT",
    "HTTP_X_FORWARDED_SERVER",
    "HTTP_X_FORWARDED_PREFIX",
    "HTTP_X_REAL_IP",
    "HTTP_FORWARDED",
)


class TrustedProxies:
    """Networks whose forwarded headers are believed."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(text, strict=False) for text in networks]

    def trusts(self, address: str) -> bool:
        if not self._networks:
            return False
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._networks)

    def apply(self, environ: dict[str, Any]) -> None:
        """Set REMOTE_ADDR, wsgi.url_scheme and fsd.forwarded_host from a trusted proxy; drop the headers."""
        taken = {name: environ.pop(name) for name in _HEADERS if name in environ}
        if not taken or not self.trusts(environ["REMOTE_ADDR"]):
            return
        for hop in reversed(taken.get("HTTP_X_FORWARDED_FOR", "").split(",")):
            address = hop.strip().strip("[]")
            try:
                ipaddress.ip_address(address)
            except ValueError:
                break
            environ["REMOTE_ADDR"] = address
            # What stands left of the first stranger was written by that stranger.
            if not self.trusts(address):
                break
        scheme = taken.get("HTTP_X_FORWARDED_PROTO", "").split(",")[-1].strip().lower()
        if scheme in ("http", "https"):
            environ["wsgi.url_scheme"] = scheme
        host = taken.get("HTTP_X_FORWARDED_HOST", "").split(",")[-1].strip()
        if host:
            environ["fsd.forwarded_host"] = host
