"""`pleiades` as a user starts it: a separate process, its log, its metrics, its children."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families

from pleiades.simulator.log import JournalEntry
from pleiades.simulator.upstream import Stats
from tests.harness.authority import authority
from tests.harness.waiting import until

COMMAND = (sys.executable, "-m", "pleiades")


class Upstream(Protocol):
    """An upstream for a relay under test: a `Simulator` or a `Tape`."""

    @property
    def url(self) -> str:
        """The URL to which a client appends a slash and its streams."""
        ...

    @property
    def started_ms(self) -> int:
        """The start, ms since 1970."""
        ...

    def journal(self) -> list[JournalEntry]:
        """All events appended so far, in order."""
        ...

    def stats(self) -> Stats:
        """A copy of the counters."""
        ...


def since_ms(upstream: Upstream) -> int:
    """The usual start time of tests: a minute before the upstream's start."""
    return upstream.started_ms - 60_000


def upstream_flags(url: str) -> list[str]:
    """Flags for the upstream, and for its authority if it speaks TLS."""
    trusted = [f"--upstream.ca={authority().ca}"] if url.startswith("https:") else []
    return [f"--upstream.url={url}", *trusted]


def ingest_flags(url: str, since: str | int) -> list[str]:
    """Flags of an ingest, except its destination."""
    return [
        "ingest",
        *upstream_flags(url),
        f"--since={since}",
        "--metricsHost=127.0.0.1",
        "--metricsPort=0",
    ]


def replay_flags(url: str, begin: str | int, end: str | int) -> list[str]:
    """Flags of a replay, except its destination; the waits suit a test's upstream."""
    return [
        "replay",
        *upstream_flags(url),
        f"--from={begin}",
        f"--to={end}",
        "--upstream.overlap=11s",
        "--idleTimeout=1s",
        "--metricsHost=127.0.0.1",
    ]


def kafka_flags(bootstrap: str, topic: str) -> list[str]:
    """Flags for a topic as destination."""
    return ["--kafka.enable", f"--kafka.broker={bootstrap}", f"--kafka.topic={topic}"]


class Relay:
    """One run of the command; the `with` block ends it at the latest."""

    def __init__(
        self,
        *arguments: str,
        command: Sequence[str] = COMMAND,
        cwd: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("PLEIADES")}
        self.lines: list[str] = []
        self._said = threading.Condition()
        self._family: set[psutil.Process] = set()
        self.process = subprocess.Popen(
            [*command, *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env=clean | (environment or {}),
            text=True,
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        # Processes that outlive the parent also keep the log's pipe open.
        self._family |= set(self.children())
        if self.process.poll() is None:
            self.process.kill()
        for child in self._family:
            if child.is_running():
                child.kill()
        self.process.wait(10)
        self._reading.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._said:
                self.lines.append(line.rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self._said.notify_all()

    @property
    def log(self) -> str:
        """Everything logged so far."""
        return "\n".join(self.lines)

    def wait_for(
        self, pattern: str, timeout_seconds: float = 30.0, after: int = 0
    ) -> re.Match[str]:
        """Wait for a log line; `after`: search only from that line number on."""

        def found() -> re.Match[str] | None:
            for line in self.lines[after:]:
                match = re.search(pattern, line)
                if match:
                    return match
            return None

        with self._said:
            ended = self._said.wait_for(
                lambda: found() or not self._reading.is_alive(), timeout_seconds
            )
        match = found()
        assert match, f"{pattern!r} {'in time' if not ended else 'at all'} not in:\n{self.log}"
        return match

    def wait_ready(self, timeout_seconds: float = 30.0) -> None:
        """Wait until /readyz answers 200."""
        until(lambda: self.status("/readyz") == 200, "readiness", timeout_seconds)

    @property
    def address(self) -> str:
        """The base URL of /metrics."""
        match = self.wait_for(r"metrics on http://\S+:(\d+)/metrics")
        return f"http://127.0.0.1:{match[1]}"

    def status(self, path: str) -> int:
        """The HTTP status of a path; 0 if nothing answers."""
        try:
            return requests.get(self.address + path, timeout=5).status_code
        except (requests.ConnectionError, requests.Timeout):
            return 0

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """All samples by name and labels."""
        return self._samples("")

    def metric(self, name: str, **labels: str) -> float:
        """One sample; 0 if there is none."""
        return self._samples(name).get((name, tuple(sorted(labels.items()))), 0.0)

    def _samples(self, beginning: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Those whose names begin so; to parse all takes a hundred times as long as to parse one."""
        page = requests.get(self.address + "/metrics", timeout=10)
        assert page.status_code == 200, page.text
        text = page.text
        if beginning:
            lines = [line for line in text.splitlines() if line.startswith(beginning)]
            text = "\n".join(lines) + "\n"
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def children(self) -> list[psutil.Process]:
        """The stages' processes (neither the forkserver nor the resource tracker)."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
            stages = [child for child in found if self.role(child)]
        except psutil.NoSuchProcess:
            return []
        self._family |= set(stages)
        return stages

    @staticmethod
    def role(process: psutil.Process) -> str:
        """`reader`, `parser-0`, `publisher`; empty for anything else."""
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            return ""
        match = re.fullmatch(r"pleiades: ([a-z]+(?:-\d+)?)\s*", title)
        # A child that was just forked still has its parent's title.
        return match[1] if match and match[1] not in ("parent", "forkserver") else ""

    def child(self, role: str, timeout_seconds: float = 30.0) -> psutil.Process:
        """Wait for the living process of a role."""

        def found() -> psutil.Process | None:
            return next((child for child in self.children() if self.role(child) == role), None)

        process = until(found, f"the process {role}", timeout_seconds)
        assert process is not None
        return process

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the parent."""
        self.process.send_signal(number)

    def stop(self, timeout_seconds: float = 40.0) -> int:
        """Send SIGTERM and wait for the end; returns the exit status."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait(timeout_seconds)

    def wait(self, timeout_seconds: float = 30.0) -> int:
        """Wait for the end; returns the exit status."""
        status = self.process.wait(timeout_seconds)
        self._reading.join(timeout_seconds)
        return status

    def until(self, condition: Callable[[], object], what: str, timeout_seconds: float) -> None:
        """Wait for a condition while the command runs; its log explains a failure."""

        def holds() -> object:
            assert self.process.poll() is None, f"ended before {what}:\n{self.log}"
            return condition()

        try:
            until(holds, what, timeout_seconds)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log}") from None
