"""fsd: a file server over plain directories."""

__version__ = "0.1.0"
