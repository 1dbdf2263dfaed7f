"""A server that says just these bytes."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress

DRIP_SECONDS = 0.02


class Server:
    """Answers one request after the other with the bytes given, the last one again and again.

    Args:
        drip: sent after the last of them again and again, until the client has had enough.
    """

    def __init__(self, *answers: bytes, drip: bytes = b"") -> None:
        self._drip = drip
        self.requests: list[bytes] = []
        self._answers = list(answers)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v2/stream"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            # A client that leaves before it has read all is served again when it returns.
            with connection, suppress(ConnectionError):
                request = b""
                while b"\r\n\r\n" not in request and (part := connection.recv(65536)):
                    request += part
                self.requests.append(request)
                connection.sendall(self._answers[0])
                if len(self._answers) > 1:
                    del self._answers[0]
                elif self._drip:
                    while not select.select([connection], [], [], DRIP_SECONDS)[0]:
                        connection.sendall(self._drip)

    def close(self) -> None:
        """Stop answering."""
        # Closing alone does not wake accept().
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)
