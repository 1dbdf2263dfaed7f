"""Writes docs/reference.md from the flags' declarations: `./scripts/reference`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pleiades.cli import all_flags
from pleiades.config.flags import Flag

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference.md"

HEAD = """# Flags

`./scripts/reference` generates this page from the declarations in the code. `pleiades help COMMAND`
prints the flags of a command.

Each flag can also be set in the environment and in a TOML file (`--config FILE` or `$PLEIADES_CONFIG`;
[deploy/pleiades.toml](../deploy/pleiades.toml) is one). In the file a dot begins a table: `publishDir`
in `[file]` is `--file.publishDir`. The command line outranks the environment, the environment the file.
Booleans are written `--name`, `--name=false` or `--no-name`. Durations need a unit: `500ms`, `60s`,
`10m`, `2h`.
"""


TABLE = ("| flag | value | default | environment | meaning |", "|---|---|---|---|---|")


def page() -> str:
    lines = []
    for flag in all_flags():
        if flag.group:
            lines += [f"\n## {flag.group.capitalize()}\n", *TABLE]
        lines.append(_row(flag))
    return HEAD + "\n".join(lines) + "\n"


def _row(flag: Flag) -> str:
    names = ", ".join(f"`{name}`" for name in (*flag.aliases, f"--{flag.name}"))
    default = f"`{flag.default}`" if flag.default else ""
    unit = flag.unit.replace("|", "\\|")
    meaning = "; ".join([flag.meaning.replace("|", "\\|"), *_exceptions(flag)])
    return f"| {names} | {unit} | {default} | `{flag.environment}` | {meaning} |"


def _exceptions(flag: Flag) -> Iterator[str]:
    if flag.without:
        yield f"not of {', '.join(f'`{command}`' for command in flag.without)}"
    for command, default in flag.defaults.items():
        yield f"`{command}`: `{default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
