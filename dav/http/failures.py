"""What can go wrong with a client while its bytes are on their way; all but one are OSError, as in the core."""


class TooSlow(OSError):
    """The peer moves less than ``limits.RATE_BYTES`` a second, or nothing at all: 408."""


class BodyError(OSError):
    """The body did not arrive as announced; nothing may be made of the part that did: 400."""


class Truncated(BodyError):
    """The connection ended before the body did."""


class Malformed(BodyError):
    """The chunked framing is broken."""


class WouldBlock(Exception):
    """Nothing has arrived yet and nobody wants to wait here: call again when the socket has something."""
