"""Keeps the metrics of all processes in files, and reads them back for a scrape.

This is prometheus-client's multiprocess mode, with files named by role instead of process id: a
restarted child continues the counters of its predecessor, even after SIGKILL, and files do not pile up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, values
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from pleiades.runtime.errors import MetricsUnavailable
from pleiades.runtime.file_systems import REFUSALS, file_system_of
from pleiades.runtime.logs import Throttle, printable

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The variable in which prometheus-client looks for the folder. Pleiades sets it; a value set by the
user is ignored."""
FILE_BYTES = 128 << 10
"""Size of a file: room for about 500 series. Each process has four files."""
_PREFIX = "pleiades-metrics-"
_VALUE_BYTES = 16
_ENTRY_BYTES = 4 + 8 + _VALUE_BYTES
"""An entry of a file needs at most this much beside its key: length, padding, value and timestamp."""
CREATE = "create a folder for metrics"
_WARNINGS = Throttle(60.0)

Processes = Callable[[], Mapping[str, int]]
"""Returns the live processes: component → process id."""


@contextlib.contextmanager
def metrics_folder() -> Iterator[str]:
    """A private folder (mode 0700) for the metrics of this run, removed at the end.

    A lock on the folder shows that its owner is alive. Folders left by a killed parent are removed.

    Raises:
        MetricsUnavailable: the folder can't be created.
    """
    try:
        _remove_left_folders()
    except OSError as error:
        raise _unavailable(CREATE, error) from None
    with _usable_folder() as folder:
        os.environ[FOLDER_VARIABLE] = folder
        try:
            yield folder
        finally:
            del os.environ[FOLDER_VARIABLE]


def probe() -> None:
    """Try what a start needs of the folder for temporary files; leaves nothing behind.

    Raises:
        MetricsUnavailable: a start would raise it.
    """
    with _usable_folder() as folder:
        # No name of the usual ending: another relay would take the folder for one that was left.
        PreallocatedFile(f"{folder}/probe").close()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _usable_folder() -> Iterator[str]:
    """A new folder, locked, that can hold a socket; removed at the end."""
    try:
        folder = tempfile.mkdtemp(prefix=_PREFIX)
    except OSError as error:
        raise _unavailable(CREATE, error) from None
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            # Another relay may look at this folder, and hold the lock for a moment.
            descriptor = stack.enter_context(_locked(folder, fcntl.LOCK_EX))
            _refuse_without_sockets(descriptor)
        except OSError as error:
            raise _unavailable(f"use {folder}", error) from None
        yield folder


def _refuse_without_sockets(folder: int) -> None:
    """Make sure that the forkserver's socket can lie in an open folder."""
    name = f"/proc/self/fd/{folder}/probe"
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(name)
        except OSError as error:
            raise OSError(error.errno, f"bind: {error.strerror}") from None
    os.unlink("probe", dir_fd=folder)


def _remove_left_folders() -> None:
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Another relay may remove this folder at any step. A folder without a file may belong to a
        # process that has just created it and not locked it yet.
        with contextlib.suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if any(name.endswith(".db") for name in os.listdir(left)):  # noqa: PTH208  # names suffice
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: str | Path, how: int) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, how)
        except OSError as error:
            raise OSError(error.errno, f"flock: {error.strerror}") from None
        yield descriptor
    finally:
        os.close(descriptor)


def _unavailable(task: str, error: OSError) -> MetricsUnavailable:
    where = ""
    with contextlib.suppress(OSError):
        where = f" (file system: {file_system_of(tempfile.gettempdir())})"
    remedy = (
        f"Free some space there ({4 * FILE_BYTES >> 10} KiB for each process), or choose another folder "
        f"with TMPDIR, on a local disk or in memory{where}"
    )
    if error.errno == errno.EFBIG:
        remedy = (
            f"Raise the limit of the size of a file (ulimit -f): {FILE_BYTES >> 10} KiB are needed"
        )
    return MetricsUnavailable(
        f"can't {task}: {error}. No event is lost: the relay has not started. {remedy}"
    )


def _allocate(file: int) -> None:
    try:
        os.posix_fallocate(file, 0, FILE_BYTES)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        os.pwrite(file, bytes(FILE_BYTES), 0)
        os.fsync(file)


class PreallocatedFile(MmapedDict):
    """One of prometheus-client's files, with a fixed size that is allocated before it is mapped.

    The library maps sparse files that grow. On a full disk, touching such a file ends the process with
    SIGBUS. Here a full disk is an error when the file is created. A series that finds no room left is
    not exposed.

    Raises:
        MetricsUnavailable: the file can't be created or allocated.
    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        try:
            if not Path(filename).exists():
                # Renamed when complete, because a scrape fails on an empty file.
                unfinished = Path(f"{filename}.new")
                unfinished.unlink(missing_ok=True)
                with unfinished.open("xb") as file:
                    _allocate(file.fileno())
                unfinished.rename(filename)
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise _unavailable(f"allocate the metrics file {filename}", error) from None

    def _init_value(self, key: str) -> None:
        last = FILE_BYTES - _VALUE_BYTES
        if self._used + len(key.encode()) + _ENTRY_BYTES <= last:
            super()._init_value(key)  # type: ignore[no-untyped-call]
            return
        # No entry reaches the last bytes of the file, and no scrape reads them.
        self._positions[key] = last
        if _WARNINGS.due():
            log.warning(
                "%s is full: new series of this process, such as %s, are missing on /metrics. No "
                "event is lost. Restart the relay to drop series that are no longer in use",
                self._fname,
                printable(key),
            )


def use_files_of(role: str, folder: str) -> None:
    """Keep the values of all metrics that this process creates from now on in the files of a role.

    The value class is set explicitly, because prometheus-client chooses its own at import: that is too
    early in a process whose modules were preloaded.

    Args:
        role: unique among the live processes. It contains no underscore, which separates the parts of
            the file names.
    """
    os.environ[FOLDER_VARIABLE] = folder
    values.MmapedDict = PreallocatedFile  # type: ignore[attr-defined]
    values.ValueClass = values.MultiProcessValue(lambda: role)  # type: ignore[no-untyped-call]


def collected() -> CollectorRegistry:
    """Returns a registry that adds up the files of all processes whenever it is collected."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, os.environ[FOLDER_VARIABLE])  # type: ignore[no-untyped-call]
    return registry


class ComponentCollector(Collector):
    """CPU time and memory of each process, read from /proc. A process that just ended is left out."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        cpu, memory = "process_cpu_seconds", "process_resident_memory_bytes"
        labels, shared = ["component"], "Resident memory of a process, shared pages included."
        families: dict[str, Any] = {
            cpu: CounterMetricFamily(f"pleiades_{cpu}", "CPU time of a process.", labels=labels),
            memory: GaugeMetricFamily(f"pleiades_{memory}", shared, labels=labels),
        }
        for component, pid in self._processes().items():
            for figure in ProcessCollector(pid=pid.__str__, registry=None).collect():
                if family := families.get(figure.name):
                    family.add_metric([component], figure.samples[0].value)
        yield from families.values()
