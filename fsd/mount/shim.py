"""What pyfuse3 lacks, in C."""

from __future__ import annotations


class Shim:
    """Stands for the compiled shim."""

    passthrough = False

    def before(self) -> None: ...
    def after(self) -> None: ...
    def register(self, fd: int) -> int:
        raise OSError(1, "no")

    def unregister(self, backing: int) -> None: ...
    def use(self, backing: int) -> None: ...
