"""A server that answers with given bytes."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from pleiades.core.units import parse_iso_time_ms

DRIP_SECONDS = 0.02


def since_of(request: bytes) -> int:
    """The start time of a request, in ms since 1970."""
    query = urlsplit(request.split(b" ", 2)[1].decode()).query
    return parse_iso_time_ms(parse_qs(query)["since"][0])


class Held(NamedTuple):
    """An answer whose connection stays open until the client leaves or the time is up."""

    answer: bytes
    drip: bytes = b""
    """Sent repeatedly while the connection is open."""
    seconds: float = 60.0


class Server:
    """Answers one request after another with the given bytes; the last answer repeats."""

    def __init__(self, *answers: bytes | Held) -> None:
        self.requests: list[bytes] = []
        self._answers = list(answers)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v2/stream"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def say(self, *answers: bytes | Held) -> None:
        """Replace the remaining answers."""
        self._answers = list(answers)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            # A client that leaves early gets the same answer again when it returns.
            with connection, suppress(ConnectionError):
                request = b""
                while b"\r\n\r\n" not in request and (part := connection.recv(65536)):
                    request += part
                self.requests.append(request)
                answer = self._answers[0]
                held = answer if isinstance(answer, Held) else Held(answer, seconds=0.0)
                connection.sendall(held.answer)
                if len(self._answers) > 1:
                    del self._answers[0]
                until = time.monotonic() + held.seconds
                while time.monotonic() < until:
                    if select.select([connection], [], [], DRIP_SECONDS)[0]:
                        break
                    connection.sendall(held.drip)

    def close(self) -> None:
        """Stop answering."""
        # Closing alone does not wake accept().
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)
