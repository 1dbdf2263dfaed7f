"""Libraries that change what the C library does, for the processes that are started with them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.harness.prerequisites import COMPILER, require

COMPILE_SECONDS = 60


def compiled(name: str, folder: Path) -> Path:
    """The library of `tests/harness/<name>.c`, for LD_PRELOAD, made in a folder."""
    (compiler,) = require(COMPILER)
    library = folder / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.c")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True, timeout=COMPILE_SECONDS)
    return library
