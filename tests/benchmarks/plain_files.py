"""One file per event in the simplest way: open, write, close.

    python -m tests.benchmarks.plain_files FILE FOLDER

The events of FILE are in memory before the clock starts; the program prints how many seconds the loop
took. No name is checked, and nothing is staged, synced or remembered.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from pleiades.upstream.chunked import ChunkDecoder


def main() -> None:
    """The command line."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    body = b"".join(ChunkDecoder().feed(source.read_bytes()))
    data = re.findall(rb"\ndata: ([^\n]+)\n", body)
    del body
    folder.mkdir(parents=True)
    # As long as the relay's names.
    names = [f"{folder}/20260131T120000.000Z-{number:036}.json" for number in range(len(data))]
    begun = time.monotonic()
    for name, event in zip(names, data, strict=True):
        with open(name, "wb") as file:  # noqa: PTH123  # the plain way, and the faster one
            file.write(event)
            file.write(b"\n")
    print(time.monotonic() - begun)


if __name__ == "__main__":
    main()
