"""All metadata is in setup.cfg, but setuptools wants compiled parts said here. This one is optional: where there is no
compiler, fsd.core.disk does the same in Python."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "fsd.core._disk",
            ["fsd/core/_disk.c"],
            optional=True,
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
        )
    ]
)
