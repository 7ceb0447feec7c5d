"""A mount of another machine's spaces, over WebDAV."""
