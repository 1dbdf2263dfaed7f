"""Memory and CPU of each process, read from the kernel at the moment of a scrape.

prometheus-client's own collector for this tells of the process that is scraped only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

Processes = Callable[[], Mapping[str, int]]
"""Those that live: component → process id."""

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Places after the name in proc_pid_stat(5), which counts from 1 and has the name second.
_UTIME, _STIME, _RSS = 14 - 3, 15 - 3, 24 - 3


class Usage(NamedTuple):
    """What a process takes."""

    cpu_seconds: float
    resident_bytes: int


def usage_of(pid: int, proc: Path = Path("/proc")) -> Usage:
    """What a process has taken.

    Raises:
        OSError, ValueError: there is no such process, or no /proc.
    """
    # The name may hold spaces and brackets.
    numbers = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    try:
        ticks, pages = int(numbers[_UTIME]) + int(numbers[_STIME]), int(numbers[_RSS])
    except IndexError:
        raise ValueError(f"/proc/{pid}/stat is cut short") from None
    return Usage(ticks / _TICKS_PER_SECOND, pages * _PAGE_BYTES)


class ProcessCollector(Collector):
    """Two metrics, by component. One that ended just now is left out."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        cpu = CounterMetricFamily(
            "pleiades_process_cpu_seconds",
            "CPU time of a process; one that was restarted begins again at 0.",
            labels=["component"],
        )
        memory = GaugeMetricFamily(
            "pleiades_process_resident_memory_bytes",
            "Memory of a process that is resident, what it shares with others included.",
            labels=["component"],
        )
        for component, pid in self._processes().items():
            with contextlib.suppress(OSError, ValueError):
                usage = usage_of(pid)
                cpu.add_metric([component], usage.cpu_seconds)
                memory.add_metric([component], usage.resident_bytes)
        yield cpu
        yield memory
