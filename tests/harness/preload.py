"""Preloaded libraries that change the behaviour of the C library."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.harness.prerequisites import COMPILER, require

COMPILE_SECONDS = 60


def preload(name: str, folder: Path) -> dict[str, str]:
    """Compile `tests/harness/<name>.c` into a folder.

    Returns:
        The environment for the processes that load it.
    """
    (compiler,) = require(COMPILER)
    library = folder / f"{name}.so"
    source = Path(__file__).with_name(f"{name}.c")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True, timeout=COMPILE_SECONDS)
    # LD_PRELOAD is separated by spaces, which the folder's path may contain; see ld.so(8).
    return {"LD_PRELOAD": library.name, "LD_LIBRARY_PATH": str(folder)}
