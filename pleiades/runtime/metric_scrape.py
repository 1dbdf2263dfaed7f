"""What all processes' files say together, at the moment of a scrape.

Law: whatever lies in the folder, a scrape answers, soon, with all that can be read, and says how
much could not. So prometheus-client's collector is not used: it raises on the first file it can't read.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pleiades.runtime.logs import Seldom, printable
from pleiades.runtime.metric_files import SUFFIX, WARNING_SECONDS
from pleiades.runtime.metric_format import Contents, DamagedFile, parse, read_file

log = logging.getLogger(__name__)

COUNTER, HISTOGRAM = "counter", "histogram"
GAUGE_MAX, GAUGE_LATEST = "gauge_max", "gauge_mostrecent"
KINDS = (COUNTER, HISTOGRAM, GAUGE_MAX, GAUGE_LATEST)
"""Of files, by how their names begin; what a process counts in has all its figures in one of each."""
MAX_NAMES = 10_000
"""So many names of the folder are looked at; each process has four."""
MAX_SCRAPE_BYTES = 16 << 20
"""All files of a scrape together; what is beyond is left out, the largest of strangers first."""
MAX_NAMED = 5
"""So many files are named in a warning."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_SUFFIXES = {
    COUNTER: ("_total",),
    HISTOGRAM: ("_bucket", "_sum"),
    GAUGE_MAX: ("",),
    GAUGE_LATEST: ("",),
}

Labels = tuple[tuple[str, str], ...]


class Series(NamedTuple):
    """One series, as its key in a file names it."""

    metric: str
    name: str
    labels: Labels
    meaning: str


class _Family:
    """One metric of all processes."""

    def __init__(self, kind: str, meaning: str) -> None:
        self.kind = kind
        self.meaning = meaning
        self._figures: dict[tuple[str, Labels], tuple[float, float]] = {}

    def add(self, series: Series, value: float, timestamp: float) -> None:
        """Take in what one process says of a series."""
        known = self._figures.get((series.name, series.labels))
        if known is None:
            figure = value, timestamp
        elif self.kind == GAUGE_MAX:
            figure = max(known[0], value), timestamp
        elif self.kind == GAUGE_LATEST:
            figure = known if known[1] > timestamp else (value, timestamp)
        else:
            figure = known[0] + value, timestamp
        self._figures[series.name, series.labels] = figure

    def shown(self, metric: str) -> Metric:
        """As it stands on the page."""
        page = Metric(metric, self.meaning, self.kind.partition("_")[0])
        buckets: dict[Labels, dict[float, float]] = {}
        for (name, labels), (value, timestamp) in self._figures.items():
            if name.endswith("_bucket") and self.kind == HISTOGRAM:
                others = tuple(label for label in labels if label[0] != "le")
                bound = float(dict(labels)["le"])
                buckets.setdefault(others, {})[bound] = value
            elif self.kind != GAUGE_LATEST or timestamp:
                # A gauge that has a series and was never set says nothing.
                page.add_sample(name, dict(labels), value)
        for labels, counts in buckets.items():
            total = 0.0
            for bound in sorted(counts):
                total += counts[bound]
                shown = floatToGoString(bound)  # type: ignore[no-untyped-call]  # of the library
                page.add_sample(f"{metric}_bucket", {**dict(labels), "le": shown}, total)
            page.add_sample(f"{metric}_count", dict(labels), total)
        return page


class ScrapeCollector(Collector):
    """Reads the files of a folder at each scrape.

    Args:
        folder: where they lie.
        roles: whose files come first.
        unwritten: given the roles that have files, and those of them that say they are not complete,
            how many processes' figures are not all in files.
    """

    def __init__(
        self,
        folder: Path,
        roles: Collection[str],
        unwritten: Callable[[set[str], set[str]], int],
    ) -> None:
        self._folder = folder
        self._roles = roles
        self._unwritten = unwritten

    def collect(self) -> Iterator[Metric]:
        """Everything that can be read, and how much could not."""
        families: dict[str, _Family] = {}
        unreadable: dict[str, str] = {}
        roles: set[str] = set()
        incomplete: set[str] = set()
        left_bytes = MAX_SCRAPE_BYTES
        for path in self._paths(unreadable):
            kind, role = _kind_and_role(path)
            try:
                content = read_file(path)
                left_bytes -= len(content)
                if left_bytes < 0:
                    raise DamagedFile(f"all files together have over {MAX_SCRAPE_BYTES >> 20} MiB")
                contents = parse(content)
                _add(families, kind, contents)
            except FileNotFoundError:
                continue
            except (DamagedFile, OSError) as error:
                unreadable[path.name] = str(error)
            else:
                if not contents.complete:
                    incomplete.add(role)
            roles.add(role)
        if unreadable:
            self._warn(unreadable)
        for name, family in families.items():
            yield family.shown(name)
        yield GaugeMetricFamily(
            "pleiades_metrics_files_unreadable",
            "Files of metrics that this scrape had to leave out.",
            len(unreadable),
        )
        yield GaugeMetricFamily(
            "pleiades_metrics_processes_unwritten",
            "Processes whose latest metrics are not all in files.",
            self._unwritten(roles, incomplete),
        )

    def _paths(self, unreadable: dict[str, str]) -> list[Path]:
        """The files of the folder: first ours, then the smallest, so that none crowds out others."""
        try:
            with os.scandir(self._folder) as entries:
                found = [
                    (_kind_and_role(Path(entry.name))[1] not in self._roles, _size_of(entry), entry)
                    for entry in _first_ours(entries, self._roles)
                ]
        except OSError as error:
            unreadable["."] = str(error)
            return []
        return [Path(entry.path) for *_, entry in sorted(found, key=lambda one: one[:2])]

    def _warn(self, unreadable: dict[str, str]) -> None:
        if _SELDOM.due():
            named = [
                f"{printable(name)} ({printable(why)})"
                for name, why in itertools.islice(unreadable.items(), MAX_NAMED)
            ]
            log.warning(
                "/metrics leaves out %d of the files in %s, which can't be read: %s. Events are "
                "relayed all the same and nothing is lost. A process that lives writes its own anew "
                "as soon as it counts something; remove what no process of Pleiades wrote",
                len(unreadable),
                self._folder,
                ", ".join(named),
            )


_SELDOM = Seldom(WARNING_SECONDS)


def _first_ours(
    entries: Iterable[os.DirEntry[str]], roles: Container[str]
) -> Iterator[os.DirEntry[str]]:
    """All files of our own processes, and of the others no more than `MAX_NAMES`."""
    others = 0
    for entry in entries:
        if not entry.name.endswith(SUFFIX):
            continue
        if _kind_and_role(Path(entry.name))[1] not in roles:
            others += 1
            if others > MAX_NAMES:
                continue
        yield entry


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        # It went since it was listed: so it does when it is opened.
        return 0


def _kind_and_role(path: Path) -> tuple[str, str]:
    kind, _, role = path.name.removesuffix(SUFFIX).rpartition("_")
    return kind, role


def _add(families: dict[str, _Family], kind: str, contents: Contents) -> None:
    """Take in a whole file, or nothing of it."""
    if kind not in KINDS:
        raise DamagedFile("its name is none of a file of metrics")
    read = [(_series(kind, entry.key), entry.value, entry.timestamp) for entry in contents.entries]
    for series, _, _ in read:
        known = families.get(series.metric)
        if known is not None and known.kind != kind:
            raise DamagedFile(f"{series.metric} is a {known.kind} in another file")
    for series, value, timestamp in read:
        family = families.setdefault(series.metric, _Family(kind, series.meaning))
        family.add(series, value, timestamp)


@functools.lru_cache(maxsize=4096)
def _series(kind: str, key: str) -> Series:
    try:
        metric, name, labels, meaning = json.loads(key)
        labels = tuple(sorted(labels.items()))
        # Half a surrogate pair is text to JSON, and none to UTF-8, in which a scrape is answered.
        "".join((meaning, *dict(labels).values())).encode()
        if kind == HISTOGRAM and name == f"{metric}_bucket":
            float(dict(labels)["le"])
        sound = (
            all(_NAME.fullmatch(word) for word in (metric, *dict(labels)))
            and all(isinstance(text, str) for text in (meaning, *dict(labels).values()))
            and name in [metric + suffix for suffix in _SUFFIXES[kind]]
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise DamagedFile("a series of it has no name that a metric could have")
    return Series(metric, name, labels, meaning)
