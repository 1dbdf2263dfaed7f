"""A web server of one thread that answers GET of a few paths, and nobody can hold up.

Law: a client costs a bounded piece of memory for a bounded time, whatever it sends, reads or leaves
undone; and who comes last is let in: where all places are taken, the one that has been there longest
goes. So clients that are slow on purpose can't shut out one that asks and reads at once.

`http.server` is not used: it echoes what it does not know into a page, reads a request as slowly as
somebody cares to send it, and has a thread for each.
"""

from __future__ import annotations

import contextlib
import logging
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from pleiades.runtime.logs import printable

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
"""At the same time; far from the 1,024 descriptors that a process usually may have."""
MAX_HEAD_BYTES = 16 << 10
"""Of a request: its line and headers. Prometheus sends about 300."""
MAX_LINE_BYTES = 4 << 10
REQUEST_SECONDS = 5.0
"""From the connection to the end of the answer; who is slower is cut off."""
LINGER_SECONDS = 1.0
"""So long what still comes after the answer is thrown away. Closing at once would make the kernel
reset the connection, and the client might lose the answer with it."""
ACCEPTS_PER_TURN = 16
"""So many are let in before those who are in are served again: a crowd at the door goes past nobody."""
ACCEPT_PAUSE_SECONDS = 0.1
BACKLOG = 128
CHUNK_BYTES = 64 << 10

TEXT = "text/plain; charset=utf-8"

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
# RFC 9112 §3: method, one space, target, one space, version. What is no ASCII is no request.
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/(\d)\.\d")
# RFC 9112 §2.2: a line may end without CR.
_HEAD_END = re.compile(rb"\r?\n\r?\n")


class Answer(NamedTuple):
    """What a client gets."""

    status: int
    body: bytes
    kind: str = TEXT


class _Client:
    """One connection: first its request is read, then it is answered, then it may leave."""

    def __init__(self, connection: socket.socket, address: str, now: float) -> None:
        self.connection = connection
        self.address = address
        self.deadline = now + REQUEST_SECONDS
        self.head = bytearray()
        self.left: memoryview | None = None
        """What is still to send of the answer; None before there is one."""
        self.leaving = False


class WebServer:
    """Serves from a thread of its own until closed.

    Args:
        listener: a bound socket; closed at the end.
        answer: what to say to GET of a path. Called by the server's thread, one call at a time.

    Raises:
        OSError: somebody else listens there.
    """

    def __init__(self, listener: socket.socket, answer: Callable[[str], Answer]) -> None:
        # Two may bind the same port before either listens: so only here it shows that it is taken.
        listener.listen(BACKLOG)
        self._listener = listener
        self._answer = answer
        self._clients: dict[int, _Client] = {}
        """By descriptor, in the order in which they came."""
        self._wake, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._waker.close()
        self._thread.join()

    def _serve(self) -> None:
        with self._selector, self._listener, self._wake:
            while True:
                events = self._selector.select(self._until_next_deadline())
                ready = {key.fd: key.fileobj for key, _ in events}
                if self._wake.fileno() in ready:
                    break
                # First those who are in: then none of them can be the one who has to go.
                for number in ready:
                    if client := self._clients.get(number):
                        self._attend(client)
                self._cut_off_the_late()
                if self._listener.fileno() in ready:
                    self._let_in()
            for client in list(self._clients.values()):
                self._part(client)

    def _until_next_deadline(self) -> float | None:
        now = time.monotonic()
        deadlines = [client.deadline for client in self._clients.values()]
        return max(0.0, min(deadlines) - now) if deadlines else None

    def _cut_off_the_late(self) -> None:
        now = time.monotonic()
        for client in [one for one in self._clients.values() if one.deadline <= now]:
            self._part(client)

    def _let_in(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # No descriptor is free, say.
                log.debug("could not let a client of /metrics in: %s", error)
                if self._clients:
                    self._part(next(iter(self._clients.values())))
                else:
                    threading.Event().wait(ACCEPT_PAUSE_SECONDS)
                return
            if len(self._clients) >= MAX_CONNECTIONS:
                self._part(next(iter(self._clients.values())))
            try:
                connection.setblocking(False)
                self._selector.register(connection, selectors.EVENT_READ)
            except OSError as error:
                # The kernel has no room for another watch, say.
                log.debug("could not let a client of /metrics in: %s", error)
                connection.close()
                return
            client = _Client(connection, str(address[0]), time.monotonic())
            self._clients[connection.fileno()] = client

    def _attend(self, client: _Client) -> None:
        """Do what can be done without waiting."""
        try:
            if client.leaving:
                if not client.connection.recv(CHUNK_BYTES):
                    self._part(client)
                return
            if client.left is None:
                self._read(client)
            if client.left is not None:
                self._write(client, client.left)
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("a client of /metrics went away: %s: %s", client.address, error)
            self._part(client)

    def _read(self, client: _Client) -> None:
        part = client.connection.recv(CHUNK_BYTES)
        if not part:
            self._part(client)
            return
        client.head += part
        answer, is_head = self._answer_to(client)
        if answer is not None:
            client.head.clear()
            client.left = memoryview(_response(answer, with_body=not is_head))
            self._selector.modify(client.connection, selectors.EVENT_WRITE)

    def _answer_to(self, client: _Client) -> tuple[Answer | None, bool]:
        """The answer to what has come so far, None to wait for more; and whether it is for HEAD."""
        line, ended, _ = bytes(client.head).partition(b"\n")
        line = line.removesuffix(b"\r")
        method = b""
        if len(line) > MAX_LINE_BYTES:
            answer = Answer(414, b"the request is too long\n")
        elif not ended:
            return None, False
        elif (request := _REQUEST_LINE.fullmatch(line)) is None:
            answer = Answer(400, b"this is no HTTP/1.1 request\n")
        elif request[3] != b"1":
            answer = Answer(505, b"HTTP/1.1 is spoken here\n")
        else:
            method = request[1]
            whole = _HEAD_END.search(client.head)
            if (whole.end() if whole else len(client.head)) > MAX_HEAD_BYTES:
                answer = Answer(431, b"the headers are too long\n")
            elif not whole:
                return None, False
            elif method != b"GET":
                answer = Answer(405, b"only GET is answered here\n")
            else:
                answer = self._answer_path(request[2].decode().partition("?")[0])
        log.debug("%s: %s: %d", client.address, printable(line), answer.status)
        return answer, method == b"HEAD"

    def _answer_path(self, path: str) -> Answer:
        try:
            return self._answer(path)
        except Exception:
            log.exception(
                "a bug: %s can't be answered; the relay itself goes on and loses nothing. Please "
                "report it",
                printable(path),
            )
            return Answer(500, b"a bug; the log says more, and the relay itself goes on\n")

    def _write(self, client: _Client, left: memoryview) -> None:
        client.left = left[client.connection.send(left) :]
        if not client.left:
            client.connection.shutdown(socket.SHUT_WR)
            client.leaving = True
            client.deadline = min(client.deadline, time.monotonic() + LINGER_SECONDS)
            self._selector.modify(client.connection, selectors.EVENT_READ)

    def _part(self, client: _Client) -> None:
        if self._clients.pop(client.connection.fileno(), None):
            self._selector.unregister(client.connection)
            with contextlib.suppress(OSError):
                client.connection.close()


def _response(answer: Answer, with_body: bool) -> bytes:
    fields = [
        f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}",
        f"Content-Type: {answer.kind}",
        f"Content-Length: {len(answer.body)}",
        "Connection: close",
        *(["Allow: GET"] if answer.status == 405 else []),  # noqa: PLR2004  # RFC 9110 §15.5.6
    ]
    head = "".join(f"{field}\r\n" for field in fields) + "\r\n"
    return head.encode() + (answer.body if with_body else b"")
