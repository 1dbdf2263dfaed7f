"""`scripts/fuzz`: fuzzes for any length of time, guided by coverage if atheris is installed.

Law: findings are kept under `corpus/<target>/`, where the test suite repeats them until they are fixed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.mutation import mutated
from tests.fuzz.registry import CORPUS, TARGETS, corpus_of
from tests.fuzz.target import MAX_INPUT_BYTES

DEFAULT_MINUTES = 10.0
MAX_SECONDS_PER_INPUT = 10
"""For atheris, a slower input is a finding, too."""
MAX_KEPT_INTERESTING = 5000
"""The inputs that one target's run without atheris builds on."""
MAX_SHRINKING_SECONDS = 20.0


def main() -> int:
    """Fuzz each target in turn; returns 1 if something was found."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument(
        "--minutes",
        type=float,
        default=DEFAULT_MINUTES,
        help="for all targets together [%(default)s]",
    )
    parser.add_argument("--only", choices=sorted(TARGETS), help="fuzz only this target")
    parser.add_argument("--seed", type=int, default=None, help="repeats a run [random]")
    parser.add_argument("--engine", choices=("atheris", "plain"), help="[atheris if installed]")
    parser.add_argument(
        "--repeat", type=Path, metavar="FILE", help="give the target of --only this one input"
    )
    told = parser.parse_args()
    if told.repeat is not None:
        if told.only is None:
            parser.error("--repeat needs the target: --only TARGET")
        TARGETS[told.only].check(told.repeat.read_bytes())
        return 0
    names = [told.only] if told.only else list(TARGETS)
    seed = random.randrange(2**31) if told.seed is None else told.seed
    engine = told.engine or ("atheris" if importlib.util.find_spec("atheris") else "plain")
    seconds = told.minutes * 60 / len(names)
    _say(f"engine {engine}, seed {seed}, {seconds:.0f} s for each of {len(names)} targets")
    run = _guided if engine == "atheris" else _plain
    found = [name for name in names if not run(name, seed, seconds)]
    _say(f"findings in: {', '.join(found)}" if found else "nothing was found")
    return 1 if found else 0


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # what the script is for


# ---- without atheris ----


def _plain(name: str, seed: int, seconds: float) -> bool:
    """Mutate kept inputs for that long; returns True if there was no finding."""
    target, rng = TARGETS[name], random.Random(seed)
    corpus = list(corpus_of(name).values())
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        raw = mutated(rng, corpus, target.tokens)
        count += 1
        if _complaint(name, raw) is not None:
            _keep(name, raw)
            return False
        # Mutations of mutations get further; the first ones stay for ever.
        if rng.random() < 0.01:
            _remember(rng, corpus, raw)
    rate = count / (time.monotonic() - started)
    _say(f"{name}: {count} inputs, {rate:.0f}/s, nothing found")
    return True


def _remember(rng: random.Random, corpus: list[bytes], raw: bytes) -> None:
    if len(corpus) < MAX_KEPT_INTERESTING:
        corpus.append(raw)
    else:
        corpus[rng.randrange(len(corpus) // 2, len(corpus))] = raw


# ---- with atheris ----


def _guided(name: str, seed: int, seconds: float) -> bool:
    """Fuzz in a separate process, which atheris ends at a finding."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        growing, artifacts = home / "corpus", home / "found"
        artifacts.mkdir()
        shutil.copytree(CORPUS / name, growing)
        words = home / "dictionary"
        words.write_text("".join(f'"{_quoted(token)}"\n' for token in TARGETS[name].tokens))
        code = f"from tests.fuzz.guided import main; main({name!r})"
        options = [
            *(f"-seed={seed % 2**31 or 1}", f"-max_total_time={max(int(seconds), 1)}"),
            *(f"-max_len={MAX_INPUT_BYTES}", f"-timeout={MAX_SECONDS_PER_INPUT}"),
            *(f"-artifact_prefix={artifacts}/", f"-dict={words}", "-print_final_stats=1"),
            *("-verbosity=0", str(growing)),
        ]
        ended = subprocess.run(
            [sys.executable, "-c", code, *options], stderr=subprocess.PIPE, check=False
        )
        said = ended.stderr.decode(errors="replace")
        stats = dict(
            line.removeprefix("stat::").split(":", 1)
            for line in said.splitlines()
            if line.startswith("stat::")
        )
        units = stats.get("number_of_executed_units", "?").strip()
        rate = stats.get("average_exec_per_sec", "?").strip()
        found = sorted(artifacts.iterdir())
        if ended.returncode == 0 and not found:
            _say(f"{name}: {units} inputs, {rate}/s, nothing found")
            return True
        if not found:
            _say(f"{name}: atheris ended with {ended.returncode}:\n{said[-2000:]}")
        for artifact in found:
            _keep(name, artifact.read_bytes())
        return False


def _quoted(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


# ---- findings ----


def _complaint(name: str, raw: bytes) -> str | None:
    """The kind of finding in one word, so that shrinking does not end at another finding."""
    try:
        TARGETS[name].check(raw)
    except Exception as error:  # any exception is a finding
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        return f"{type(error).__name__} at line {place.tb_lineno if place else 0}"
    return None


def _keep(name: str, raw: bytes) -> None:
    complaint = _complaint(name, raw)
    raw = _shrunk(name, raw, complaint) if complaint else raw
    file = CORPUS / name / f"found-{hashlib.sha256(raw).hexdigest()[:12]}"
    file.write_bytes(raw)
    kept = file.relative_to(CORPUS.parents[2])
    what = complaint or "something that does not repeat, or takes too long"
    _say(
        f"{name}: FOUND {what}: {raw[:200]!r}\n"
        f"  repeat it: scripts/fuzz --only {name} --repeat {kept}"
    )


def _shrunk(name: str, raw: bytes, complaint: str) -> bytes:
    """The same finding in fewer bytes."""
    deadline = time.monotonic() + MAX_SHRINKING_SECONDS
    size = len(raw) // 2
    while size and time.monotonic() < deadline:
        at, shorter = 0, False
        while at < len(raw) and time.monotonic() < deadline:
            candidate = raw[:at] + raw[at + size :]
            if _complaint(name, candidate) == complaint:
                raw, shorter = candidate, True
            else:
                at += size
        if not shorter:
            size //= 2
    return raw


if __name__ == "__main__":
    sys.exit(main())
