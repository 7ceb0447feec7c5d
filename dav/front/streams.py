"""Connections that only listen: a socket each, written to by the front thread."""

_NEVER = 3600.0


class Streams:
    """None yet."""

    def tick(self, now: float) -> float:
        """Seconds until it wants to be called again."""
        return _NEVER
