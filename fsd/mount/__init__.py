"""Spaces as filesystems, through FUSE: a thin adapter over fsd.core (pyfuse3, trio)."""
