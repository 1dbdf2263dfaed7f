"""Slow, broken or silent connections: a proxy between a client and a private server.

Data from the server flows `downstream`, data to it `upstream`. A toxic disturbs one direction of all
open and future connections until it is removed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import requests

from tests.harness.broker import free_port
from tests.harness.kept import end_kept, start_kept
from tests.harness.prerequisites import TOXIPROXY, require
from tests.harness.waiting import until

ASK_SECONDS = 10

Direction = Literal["upstream", "downstream"]


# ---- toxics ----


class Toxic(Protocol):
    """A disturbance of connections."""

    kind: str

    def attributes(self) -> dict[str, int]:
        """The attributes under Toxiproxy's names."""
        ...


@dataclass(frozen=True)
class ResetPeer:
    """Once data arrives, wait, then reset the connection: data in transit is lost."""

    after_seconds: float = 0
    kind = "reset_peer"

    def attributes(self) -> dict[str, int]:
        """In ms."""
        return {"timeout": _ms(self.after_seconds)}


@dataclass(frozen=True)
class Timeout:
    """Swallow all data. The connection stays open (half-open: neither side notices), by default for
    ever.

    Swallowed data cannot arrive later: when the toxic is removed, its connections are closed.
    """

    close_after_seconds: float = 0
    kind = "timeout"

    def attributes(self) -> dict[str, int]:
        """In ms; 0 is for ever."""
        return {"timeout": _ms(self.close_after_seconds)}


@dataclass(frozen=True)
class SlowClose:
    """Pass data, but delay the end of the connection."""

    delay_seconds: float
    kind = "slow_close"

    def attributes(self) -> dict[str, int]:
        """In ms."""
        return {"delay": _ms(self.delay_seconds)}


@dataclass(frozen=True)
class Latency:
    """Delay everything by `seconds` ± `jitter_seconds`, in order."""

    seconds: float
    jitter_seconds: float = 0
    kind = "latency"

    def attributes(self) -> dict[str, int]:
        """In ms."""
        return {"latency": _ms(self.seconds), "jitter": _ms(self.jitter_seconds)}


@dataclass(frozen=True)
class Bandwidth:
    """Limit the throughput."""

    kilobytes_per_second: int
    kind = "bandwidth"

    def attributes(self) -> dict[str, int]:
        """In KB/s."""
        return {"rate": self.kilobytes_per_second}


@dataclass(frozen=True)
class LimitData:
    """End each connection after that many bytes."""

    size_bytes: int
    kind = "limit_data"

    def attributes(self) -> dict[str, int]:
        """In bytes."""
        return {"bytes": self.size_bytes}


@dataclass(frozen=True)
class Slicer:
    """Split data into pieces of `average_bytes` ± `variation_bytes`, with pauses in between."""

    average_bytes: int
    variation_bytes: int = 0
    delay_seconds: float = 0
    kind = "slicer"

    def attributes(self) -> dict[str, int]:
        """In bytes, and in µs."""
        return {
            "average_size": self.average_bytes,
            "size_variation": self.variation_bytes,
            "delay": round(self.delay_seconds * 1_000_000),
        }


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


# ---- proxies ----


class Proxy:
    """A listening address, and the server that its connections lead to."""

    def __init__(self, api: str, name: str, listen: str, upstream: str) -> None:
        self.name = name
        self.listen = listen
        """host:port for clients."""
        self.upstream = upstream
        """host:port of the server."""
        self._at = f"{api}/proxies/{name}"

    @property
    def port(self) -> int:
        """The port of `listen`."""
        return int(self.listen.rpartition(":")[2])

    def add(self, toxic: Toxic, direction: Direction = "downstream") -> None:
        """Disturb one direction. A direction can have at most one toxic of each kind."""
        wanted = {
            "name": _name(toxic, direction),
            "type": toxic.kind,
            "stream": direction,
            "attributes": toxic.attributes(),
        }
        _ask("POST", f"{self._at}/toxics", wanted)

    def remove(self, toxic: Toxic, direction: Direction = "downstream") -> None:
        """Stop the disturbance."""
        _ask("DELETE", f"{self._at}/toxics/{_name(toxic, direction)}")

    @contextmanager
    def spoiled(self, toxic: Toxic, *directions: Direction) -> Iterator[None]:
        """Apply the toxic during the `with` block, in both directions if none is given."""
        added: list[Direction] = []
        try:
            for direction in directions or ("upstream", "downstream"):
                self.add(toxic, direction)
                added.append(direction)
            yield
        finally:
            for direction in added:
                self.remove(toxic, direction)

    def disable(self) -> None:
        """Cut all connections and refuse new ones."""
        _ask("POST", self._at, {"enabled": False})

    def enable(self) -> None:
        """Accept connections again, at the same address."""
        _ask("POST", self._at, {"enabled": True})

    def cut(self) -> None:
        """End all connections, but accept new ones."""
        self.disable()
        self.enable()


def _name(toxic: Toxic, direction: Direction) -> str:
    return f"{toxic.kind}-{direction}"


class Toxiproxy:
    """The server of all proxies; ends with the `with` block, and never outlives this process.

    Args:
        folder: for its log.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "toxiproxy.log"
        self._port = free_port(1)
        self._api = f"http://127.0.0.1:{self._port}"
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Toxiproxy:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server; returns when it answers."""
        server = [*require(TOXIPROXY), "-host", "127.0.0.1", "-port", str(self._port)]
        keeper = start_kept(server, self._log)
        self._keeper = keeper
        until(lambda: keeper.poll() is not None or self._answers(), "Toxiproxy to answer")
        assert keeper.poll() is None, f"Toxiproxy ended: {self._log.read_text()}"

    def stop(self) -> None:
        """End the server and all its connections."""
        if self._keeper is not None:
            end_kept(self._keeper)
            self._keeper = None

    def proxy(self, upstream: str, name: str = "proxy", port: int | None = None) -> Proxy:
        """Create a proxy that leads to `upstream`.

        Args:
            upstream: host:port; nothing needs to listen there yet.
            name: must be unique.
            port: to listen on, at 127.0.0.1; None: a free one that no outgoing connection can take.
        """
        listen = f"127.0.0.1:{port or free_port(1)}"
        made = _ask(
            "POST",
            f"{self._api}/proxies",
            {"name": name, "listen": listen, "upstream": upstream, "enabled": True},
        )
        return Proxy(self._api, name, made["listen"], upstream)

    def _answers(self) -> bool:
        try:
            return requests.get(f"{self._api}/version", timeout=ASK_SECONDS).ok
        except requests.ConnectionError:
            return False


def _ask(method: str, url: str, wanted: dict[str, Any] | None = None) -> Any:
    answer = requests.request(method, url, json=wanted, timeout=ASK_SECONDS)
    assert answer.ok, f"{method} {url} {wanted}: {answer.status_code} {answer.text}"
    return answer.json() if answer.content else None
