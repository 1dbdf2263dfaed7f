"""The result as a table, as JSON, as Markdown and as a page with a picture."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from pleiades import __version__
from tests.benchmarks.pictures import ratios
from tests.benchmarks.trials import OverTls, Row, Spread, Target

JUDGED = {True: "met", False: "missed", None: ""}
HEAD = ("trial", "what", "ours", "rival", "figure", "over HTTPS", "target", "")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of `HEAD`."""
    return (
        row.name,
        row.what,
        f"{_text(row.ours)} {row.unit}",
        "" if row.rival is None else _text(row.rival),
        "" if row.figure is None else f"{row.figure:.3g}",
        "" if row.https is None else _over_tls(row.https),
        "" if row.target is None else str(row.target),
        JUDGED[row.met],
    )


def _over_tls(https: OverTls) -> str:
    """Medians: ours, the rival's and their ratio, and our rate relative to HTTP."""
    medians = _number(https.ours.median)
    if https.rival is not None:
        medians += f" : {_number(https.rival.median)} = {https.figure:.3g}"
    return f"{medians}, {https.to_http:.3g} of HTTP"


def _text(spread: Spread) -> str:
    if spread.least == spread.most:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.least)} to {_number(spread.most)})"


def _number(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def table(rows: Sequence[Row]) -> Table:
    """The table for a terminal: medians, with minimum and maximum in brackets."""
    result = Table(*HEAD, caption=machine_line())
    for row in rows:
        result.add_row(*cells(row), style="red" if row.met is False else None)
    return result


def markdown(rows: Sequence[Row]) -> str:
    """The table for a document."""
    lines = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in (HEAD, *map(cells, rows))
    ]
    return "\n".join([lines[0], "|" + "---|" * len(HEAD), *lines[1:]])


def page(rows: Sequence[Row], folder: Path) -> Path:
    """Write the report into a folder: one page, with the ratios as a picture."""
    ratios(rows, folder / "ratios.svg")
    file = folder / "report.md"
    file.write_text(
        f"# Benchmark\n\n{machine_line()}.\n\n![Ratios](ratios.svg)\n\n{markdown(rows)}\n"
    )
    return file


def machine() -> dict[str, str | int]:
    """The machine of the measurement."""
    return {
        "pleiades": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
    }


def machine_line() -> str:
    """The same in a line."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine().items())


def _processor() -> str:
    # Not every architecture names it.
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def _plain(figures: Row | OverTls | Spread | Target) -> dict[str, Any]:
    """Convert named tuples to dictionaries, recursively."""
    return {
        name: _plain(found) if isinstance(found, (OverTls, Spread, Target)) else found
        for name, found in figures._asdict().items()
    }


def as_json(rows: Sequence[Row]) -> str:
    """The result for a program."""
    listed = [_plain(row) | {"met": row.met} for row in rows]
    return json.dumps({"machine": machine(), "rows": listed}, indent=2)
