"""The upstream of a benchmark: a process of its own that only calls sendfile(2).

    python -m tests.benchmarks.serve FILE [--rate N --times FILE]

Whoever asks without `Last-Event-ID` gets all of FILE, then the connection ends; whoever asks with one
has had it all, and gets silence. On standard output: the port, then for each request when it came, by
`time.monotonic()`, and whether it was answered with events.

With `--rate` the events of FILE, which then must have a chunk for each line, come one by one. When each
was written goes into the file of `--times`, as an array of doubles.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
import time
from array import array
from pathlib import Path

from tests.benchmarks.corpus import OPENING
from tests.harness.script import chunked

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)
MAX_REQUEST_BYTES = 64 * 1024
SEND_BYTES = 4 * 1024 * 1024
START = b"f\r\nevent: message\n\r\n"
"""The first chunk of an event, where each line is one."""


class Server:
    """Serves one file to any number of clients."""

    def __init__(self, path: Path, rate: float, times: Path | None) -> None:
        self._path = path
        self._rate = rate
        self._times = times

    def run(self) -> None:
        """Serve until the process is ended."""
        with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
            print(listening.getsockname()[1], flush=True)
            while True:
                client, _ = listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            request = b""
            while b"\r\n\r\n" not in request:
                received = client.recv(MAX_REQUEST_BYTES)
                if not received or len(request) > MAX_REQUEST_BYTES:
                    return
                request += received
            came = time.monotonic()
            fresh = b"\r\nlast-event-id:" not in request.lower()
            print(f"{came!r} {int(fresh)}", flush=True)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                client.sendall(HEAD)
                if not fresh:
                    client.sendall(chunked(OPENING))
                elif self._rate:
                    self._pace(client)
                else:
                    self._send(client)
                    return
                # Silent until the client leaves.
                client.recv(1)
            except (BrokenPipeError, ConnectionResetError):
                return

    def _send(self, client: socket.socket) -> None:
        with self._path.open("rb") as file:
            size, sent = os.fstat(file.fileno()).st_size, 0
            while sent < size:
                sent += os.sendfile(client.fileno(), file.fileno(), sent, SEND_BYTES)

    def _pace(self, client: socket.socket) -> None:
        # Each event's three chunks, which stand in the file one after the other. It does not end.
        opening, *events = self._path.read_bytes().removesuffix(chunked(b"")).split(START)
        client.sendall(opening)
        written = array("d")
        begun = time.monotonic()
        for number, event in enumerate(events):
            due = begun + number / self._rate
            time.sleep(max(due - time.monotonic(), 0.0))
            written.append(time.time())
            client.sendall(START + event)
        if self._times is not None:
            self._times.write_bytes(written.tobytes())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--times", type=Path)
    arguments = parser.parse_args()
    Server(arguments.file, arguments.rate, arguments.times).run()


if __name__ == "__main__":
    main()
