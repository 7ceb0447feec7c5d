"""What the settings say of Kafka, and what a connection takes of it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Broker:
    """How to reach the brokers. `security`: plaintext, ssl, sasl_plaintext or sasl_ssl."""

    brokers: tuple[str, ...]
    group: str = "fsd"
    security: str = "plaintext"
    mechanism: str = "PLAIN"
    username: str = ""
    password: str = ""
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    member: str = ""
    """A name of this watcher alone in its group, the same after each start; "" for none."""

    def arguments(self) -> dict[str, Any]:
        """For aiokafka's clients. OSError (also ssl.SSLError) if a certificate can't be read."""
        found: dict[str, Any] = {
            "bootstrap_servers": list(self.brokers),
            "client_id": "fsd",
            "security_protocol": self.security.upper(),
        }
        if self.security.endswith("ssl"):
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
            found["ssl_context"] = context
        if self.security.startswith("sasl"):
            found["sasl_mechanism"] = self.mechanism
            found["sasl_plain_username"] = self.username
            found["sasl_plain_password"] = self.password
        return found
