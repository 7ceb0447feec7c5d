"""The WebDAV protocol (RFC 4918) over ``fsd.core``: one file per method."""
