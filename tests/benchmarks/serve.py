"""The upstream of a benchmark: a separate process that sends a file as fast as the client reads.

    python -m tests.benchmarks.serve FILE [--rate N --times FILE] [--ca FILE --record BYTES]

A request without `Last-Event-ID`, or from a time before the events, gets all of FILE, and then the
connection ends. Any other request comes from a client that has received everything, and gets silence.

With `--rate`, FILE must have a chunk for each line. The events are sent one by one, and the connection
stays open. The due times of the events are written to the file of `--times`, as an array of doubles.

With `--ca` the server speaks HTTPS, with TLS records of at most `--record` bytes. It creates a
certificate authority and writes its certificate into that file.

On standard output it prints the port, and then these lines:

    request TIME FRESH      a request came at TIME by `time.monotonic()`; FRESH: 1 if it gets events
    unread BYTES            with `--rate`, `SETTLE_SECONDS` after the last event was due: the bytes
                            left unread in the sockets of both sides, and those that did not fit there
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import re
import socket
import ssl
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from pleiades.simulator.tls import server_context
from tests.benchmarks.corpus import OPENING
from tests.harness.script import chunked

HOST = "127.0.0.1"
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
)
MAX_REQUEST_BYTES = 64 * 1024
SEND_BYTES = 4 * 1024 * 1024
MAX_RECORD_BYTES = 16 * 1024
"""Limit of one TLS record's content (RFC 8446, section 5.1)."""
EVENT_CHUNKS = 3
"""The number of chunks of an event with one chunk per line."""
FIRST_EVENT_MS = 1_700_000_000_000
"""All events are later; a client that wants them all asks from long before."""
SETTLE_SECONDS = 1.0
"""Time from the last event's due time to the measurement of the backlog. By then a client that keeps up
has read everything, even one that collects input for a moment."""

Data: TypeAlias = bytes | memoryview


class Server:
    """Serves one file to any number of clients.

    Args:
        path: the file.
        rate: events per second; 0: as fast as the client reads.
        times: receives the times at which events were due, seconds since 1970.
        tls: None: plain HTTP.
        record_bytes: limit of one TLS record.
    """

    def __init__(
        self,
        path: Path,
        rate: float,
        times: Path | None,
        tls: ssl.SSLContext | None,
        record_bytes: int,
    ) -> None:
        self._path = path
        self._rate = rate
        self._times = times
        self._tls = tls
        self._record_bytes = record_bytes

    def run(self) -> None:
        """Serve until the process is ended."""
        with socket.create_server((HOST, 0), backlog=16) as listening:
            print(listening.getsockname()[1], flush=True)
            while True:
                client, _ = listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        # Each small write becomes a separate segment, as with the real service.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            if self._tls is None:
                with plain:
                    self._answer(plain)
            else:
                with self._tls.wrap_socket(plain, server_side=True) as client:
                    self._answer(client)

    def _answer(self, client: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            received = client.recv(MAX_REQUEST_BYTES)
            if not received or len(request) > MAX_REQUEST_BYTES:
                return
            request += received
        fresh = _wants_all(request)
        print(f"request {time.monotonic()!r} {int(fresh)}", flush=True)
        self._write(client, HEAD)
        if not fresh:
            self._write(client, chunked(OPENING))
        elif self._rate:
            self._pace(client)
        else:
            self._send_all(client)
            return
        # Silent until the client leaves.
        client.recv(1)

    def _write(self, client: socket.socket, data: Data) -> None:
        """Send everything; over TLS one record per `record_bytes`."""
        if self._tls is None:
            client.sendall(data)
            return
        # One SSL_write of at most 16 KiB makes one record. sendall() would cut at 16 KiB itself.
        for start in range(0, len(data), self._record_bytes):
            client.send(data[start : start + self._record_bytes])

    def _send_all(self, client: socket.socket) -> None:
        with self._path.open("rb") as file:
            if self._tls is None:
                size, sent = os.fstat(file.fileno()).st_size, 0
                while sent < size:
                    sent += os.sendfile(client.fileno(), file.fileno(), sent, SEND_BYTES)
                return
            self._write(client, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))

    def _pace(self, client: socket.socket) -> None:
        """Send event by event, each line in a separate write. It does not end."""
        opening, *chunks = _chunks(self._path.read_bytes().removesuffix(chunked(b"")))
        self._write(client, opening)
        events = range(0, len(chunks), EVENT_CHUNKS)
        left_bytes = sum(map(len, chunks))

        def report() -> None:
            print(f"unread {left_bytes + _queued_bytes(client)}", flush=True)

        begun, begun_at = time.monotonic(), time.time()
        if self._times is not None:
            # The time when they are due, not when they are written: an event that waits for the client
            # to read is late already.
            due = array("d", [begun_at + number / self._rate for number in range(len(events))])
            self._times.write_bytes(due.tobytes())
        # In a separate thread, because this one may be blocked by a client that does not read.
        look = threading.Timer(len(events) / self._rate + SETTLE_SECONDS, report)
        look.daemon = True
        look.start()
        try:
            for number, first in enumerate(events):
                time.sleep(max(begun + number / self._rate - time.monotonic(), 0.0))
                for chunk in chunks[first : first + EVENT_CHUNKS]:
                    self._write(client, chunk)
                    left_bytes -= len(chunk)
        except OSError:
            # The client has left, perhaps to reconnect.
            look.cancel()
            raise


def _wants_all(request: bytes) -> bool:
    """True if a client has received no event: it knows no topic, or no topic's position."""
    found = re.search(rb"\r\nlast-event-id:([^\r]*)", request, re.IGNORECASE)
    asked_ms = map(int, re.findall(rb'"timestamp":\s*(\d+)', found[1])) if found else ()
    return all(timestamp_ms < FIRST_EVENT_MS for timestamp_ms in asked_ms)


def _chunks(body: bytes) -> Iterator[bytes]:
    """The chunks of the transfer encoding, including their framing."""
    start = 0
    while start < len(body):
        size_end = body.index(b"\r\n", start)
        end = size_end + 2 + int(body[start:size_end], 16) + 2
        yield body[start:end]
        start = end


def _queued_bytes(client: socket.socket) -> int:
    """A connection's unread bytes within this machine: in the sockets of both sides."""
    (_, port), (_, peer) = client.getsockname(), client.getpeername()
    queued = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        # https://docs.kernel.org/networking/proc_net_tcp.html: addresses and queues in hexadecimal.
        _, local, remote, _, queues, *_ = line.split()
        ends = int(local.partition(":")[2], 16), int(remote.partition(":")[2], 16)
        unacknowledged, unread = (int(size, 16) for size in queues.split(":"))
        if ends == (port, peer):
            queued += unacknowledged
        elif ends == (peer, port):
            queued += unread
    return queued


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--times", type=Path)
    parser.add_argument("--ca", type=Path)
    parser.add_argument("--record", type=int, default=MAX_RECORD_BYTES)
    given = parser.parse_args()
    tls = None if given.ca is None else server_context(HOST, given.ca, record_bytes=0)
    Server(given.file, given.rate, given.times, tls, given.record).run()


if __name__ == "__main__":
    main()
