"""Bounds on what a client may make the server hold or do, in one place."""

HEAD_BYTES = 64 * 1024
"""Request line and headers together; more is a 431."""

HEADER_COUNT = 100

CHUNK_LINE_BYTES = 1024
"""A chunk-size line with its extensions."""

TRAILER_BYTES = 8 * 1024

CHUNK_DIGITS = 15
"""Hexadecimal digits of a chunk size: below 2**60, so no arithmetic surprises downstream."""

DRAIN_BYTES = 64 * 1024
"""What is read of a body nobody wanted, to keep the connection usable."""

BLOCK = 256 * 1024
"""Unit of copying between sockets and files: larger gains little, smaller costs throughput."""

XML_BODY_BYTES = 256 * 1024

PROPERTIES = 200
"""Named properties in one request."""

RANGES = 32
"""More byte ranges in one request than this are ignored: the whole file is sent."""

HEAD_SECONDS = 20.0
"""From the first byte of a request to the end of its headers."""

HANDSHAKE_SECONDS = 10.0

IDLE_SECONDS = 75.0
"""A connection kept alive without a request."""

STALL_SECONDS = 30.0
"""No byte moved at all in a body or a reply."""

GRACE_SECONDS = 10.0
"""Before the minimum rate is asked of a body or a reply."""

RATE_BYTES = 1024
"""Minimum bytes a second, averaged since the body or reply began."""

LINGER_SECONDS = 10.0
"""After an early answer: how long unwanted bytes are discarded, so that no reset eats the answer (RFC 9112 section
9.6). Many clients read no answer before all of their body is sent."""

LINGER_BYTES = 1 << 30
"""The most that is discarded meanwhile."""
