"""Everything HTTP: the server, the WebDAV protocol and the pages, over ``fsd.core``."""
