"""Faults of the publish directory: full, read-only, forbidden, gone, blocked, damaged."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

import orjson

from pleiades.simulator.simulator import Simulator
from tests.faults.matrix import DISKS, row
from tests.faults.trial import Trial, restarted, restarts, without_tracebacks
from tests.harness.preload import preload
from tests.harness.prerequisites import MOUNT, SETPRIV, require
from tests.harness.relay import Relay, since_ms

RATE = 200
DISK_BYTES = 192 * 1024 * 1024
"""Room for 30,000 files of a page each, and three times that still fits into a machine's memory."""
MOUNT_SECONDS = 30
HANG_SECONDS = 2
CHECKPOINT = "checkpoint-recentchange"


class SmallDisk:
    """A separate file system for the publish directory, which can be filled and freed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Leave no byte free."""
        self._filling = fill(self.folder)

    def free(self) -> None:
        """Free the space again."""
        self._filling.unlink()

    def move(self, place: Path) -> None:
        """Mount it elsewhere; open files stay open."""
        run("mount", "--move", str(self.folder), str(place))


def run(*command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True, timeout=MOUNT_SECONDS)


def unmount_all(folder: Path) -> None:
    """Unmount what a failed trial left there."""
    while folder.is_mount():
        run("umount", "--lazy", str(folder))


def fill(folder: Path) -> Path:
    """Fill a folder's file system; returns the file that takes all the space."""
    filling = folder / "filling"
    descriptor = os.open(filling, os.O_WRONLY | os.O_CREAT)
    try:
        for step_bytes in (1024 * 1024, 4096):
            with contextlib.suppress(OSError):
                while True:
                    end = os.lseek(descriptor, 0, os.SEEK_END)
                    os.posix_fallocate(descriptor, end, step_bytes)
    finally:
        os.close(descriptor)
    return filling


def small_disk(trial: Trial) -> SmallDisk:
    """Make the trial's directory a separate file system."""
    folder = trial.directory.folder
    folder.mkdir()
    mount_tmpfs(trial, folder, DISK_BYTES)
    return SmallDisk(folder)


def mount_tmpfs(trial: Trial, folder: Path, size_bytes: int) -> None:
    """Mount a tmpfs until the trial ends."""
    require(MOUNT)
    run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder))
    # A mount with shared propagation cannot be moved.
    run("mount", "--make-private", str(folder))
    trial.at_the_end(lambda: unmount_all(folder))


def wait_for_trouble(trial: Trial, relay: Relay) -> None:
    """Wait until the relay has failed twice, and still runs."""
    metric = trial.directory.errors_metric
    before = relay.metric(metric)
    trial.wait(lambda: relay.metric(metric) > before + 1, "two failed attempts", relay)
    assert relay.status("/healthz") == 200, relay.log
    trial.survived()


@row("disk full, then freed", on=DISKS)
def disk_full(trial: Trial) -> None:
    """The relay waits; meanwhile no partial event is visible, and none is skipped."""
    disk = small_disk(trial)
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(*trial.flags(upstream))
    trial.wait_for_more(relay)
    for _ in range(trial.times(4, at_least=1)):
        disk.fill()
        wait_for_trouble(trial, relay)
        seen = trial.directory.judge(upstream.journal(), since_ms(upstream), finished=False)
        assert seen.flawless, seen
        with trial.recovery(upstream, relay):
            disk.free()
    assert "No space left on device" in relay.log
    without_tracebacks([relay])
    trial.finish(upstream, relay)


@row("disk that does not answer for longer than a process may hang", on=DISKS)
def disk_hangs(trial: Trial) -> None:
    """A restart would not help: it would wait for the same disk."""
    hangs = trial.folder / "hangs"
    environment = preload("disk", trial.folder) | {"DISK_HANGS_FILE": str(hangs)}
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(
        *trial.flags(upstream), f"--hangTimeout={HANG_SECONDS}s", environment=environment
    )
    for _ in range(trial.times(3, at_least=1)):
        trial.wait_for_more(relay, RATE)
        hangs.touch()
        _wait_until_made(trial, upstream, relay, RATE * HANG_SECONDS * 3)
        behind = upstream.stats().events_appended_total - trial.destination.count()
        assert behind > RATE * HANG_SECONDS, "the disk answers"
        assert relay.status("/healthz") == 200, "a slow disk must not count as a hung process"
        trial.survived()
        with trial.recovery(upstream, relay):
            hangs.unlink()
        trial.wait_for_more(relay, RATE)
    assert restarts(relay) == 0, relay.log
    trial.finish(upstream, relay)


def _wait_until_made(trial: Trial, upstream: Simulator, relay: Relay, events: int) -> None:
    """Wait for the upstream to have them, published or not."""
    enough = upstream.stats().events_appended_total + events
    trial.wait(lambda: upstream.stats().events_appended_total > enough, "a long wait", relay)


@row("disk mounted read-only, then writable", on=DISKS)
def disk_read_only(trial: Trial) -> None:
    """ext4 does this after a device error."""
    disk = small_disk(trial)
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(*trial.flags(upstream))
    trial.wait_for_more(relay)
    for _ in range(trial.times(4, at_least=1)):
        publisher = relay.child("publisher")
        trial.suspend(publisher)
        # The lock file, open for writing, prevents a remount; a bind mount over it does not.
        run("mount", "--bind", str(disk.folder), str(disk.folder))
        run("mount", "-o", "remount,bind,ro", str(disk.folder))
        publisher.resume()
        wait_for_trouble(trial, relay)
        with trial.recovery(upstream, relay):
            run("umount", str(disk.folder))
    assert "Read-only file system" in relay.log
    without_tracebacks([relay])
    trial.finish(upstream, relay)


@row("permission to write lost, then given back", on=DISKS)
def permission_lost(trial: Trial) -> None:
    """Somebody changes the owner or the mode of the directory."""
    upstream = trial.simulate(rate=RATE)
    relay = _as_ordinary_user(trial, *trial.flags(upstream))
    trial.wait_for_more(relay)
    working = trial.directory.working
    for _ in range(trial.times(4, at_least=1)):
        mode = stat.S_IMODE(working.stat().st_mode)
        working.chmod(0o500)
        wait_for_trouble(trial, relay)
        with trial.recovery(upstream, relay):
            working.chmod(mode)
    assert "Permission denied" in relay.log
    without_tracebacks([relay])
    trial.finish(upstream, relay)


def _as_ordinary_user(trial: Trial, *flags: str) -> Relay:
    """Root may write everywhere, so the relay is started without that right."""
    if os.geteuid() != 0:
        return trial.relay(*flags)
    (setpriv,) = require(SETPRIV)
    without = "-dac_override,-dac_read_search"
    return trial.relay(
        *flags, before=[setpriv, f"--bounding-set={without}", f"--inh-caps={without}"]
    )


@row("directory moved away, then put back", on=DISKS)
def directory_moved(trial: Trial) -> None:
    """An unmounted volume or a wrong mv: the relay must not publish into a new, empty directory."""
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(*trial.flags(upstream))
    trial.wait_for_more(relay)
    folder = trial.directory.folder
    elsewhere = folder.with_name("elsewhere")
    for _ in range(trial.times(4, at_least=1)):
        folder.rename(elsewhere)
        wait_for_trouble(trial, relay)
        # A restarted process does not hold the lock of the moved directory, and must not create a new
        # one.
        died = restarts(relay)
        relay.child("publisher").kill()
        trial.wait(restarted(relay, died + 1), "the restart", relay)
        wait_for_trouble(trial, relay)
        assert not folder.exists(), "created anew without the published events"
        with trial.recovery(upstream, relay):
            elsewhere.rename(folder)
    without_tracebacks([relay])
    trial.finish(upstream, relay)


@row("volume unmounted under the relay, then mounted again", on=DISKS)
def volume_unmounted(trial: Trial) -> None:
    """The next mount would hide anything written into the empty mount point."""
    disk = small_disk(trial)
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(*trial.flags(upstream))
    trial.wait_for_more(relay)
    elsewhere = trial.folder / "elsewhere"
    elsewhere.mkdir()
    for _ in range(trial.times(4, at_least=1)):
        disk.move(elsewhere)
        wait_for_trouble(trial, relay)
        assert not list(trial.directory.folder.iterdir()), "written into the empty mount point"
        with trial.recovery(upstream, relay):
            SmallDisk(elsewhere).move(trial.directory.folder)
    without_tracebacks([relay])
    trial.finish(upstream, relay)


@row("directory removed with all that is in it", on=DISKS)
def directory_removed(trial: Trial) -> None:
    """Removed files stay gone; unpublished events are published into a new directory."""
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(*trial.flags(upstream))
    removed: set[str] = set()
    for _ in range(trial.times(4, at_least=1)):
        trial.wait_for_more(relay, RATE)
        publisher = relay.child("publisher")
        trial.suspend(publisher)
        removed |= trial.directory.identities()
        shutil.rmtree(trial.directory.folder)
        publisher.resume()
        trial.wait(lambda: trial.directory.count() > 0, "a new directory", relay)
        trial.survived()
    assert "No such file or directory" in relay.log
    had = upstream.journal()
    trial.wait_for_more(relay, 2 * RATE)
    assert relay.stop() == 0
    without_tracebacks([relay])
    # The publisher may have been stopped during a commit: events that had a name but did not yet count
    # as published come again.
    removed -= trial.directory.identities()
    assert not trial.directory.judge(
        [entry for entry in had if entry.identity not in removed], since_ms(upstream), finished=True
    ).lost
    left = [entry for entry in upstream.journal() if entry.identity not in removed]
    trial.compare(left, since_ms(upstream), finished=False)


@row("foreign files in the way of events, then removed", on=DISKS)
def foreign_file(trial: Trial) -> None:
    """A file has the name of an hour's folder, and a folder that of the position's next version."""
    upstream = trial.simulate(rate=RATE)
    relay = trial.relay(*trial.flags(upstream))
    trial.wait_for_more(relay)
    folder = trial.directory.folder
    for _ in range(trial.times(4, at_least=1)):
        for name in (*trial.directory.in_the_way(), f".pleiades/{CHECKPOINT}.new"):
            publisher = relay.child("publisher")
            trial.suspend(publisher)
            place, aside = folder / name, trial.folder / "aside"
            if place.exists():
                place.rename(aside)
            if name.endswith(".new"):
                place.mkdir()
            else:
                place.write_text("not a folder")
            publisher.resume()
            wait_for_trouble(trial, relay)
            trial.suspend(publisher)
            if name.endswith(".new"):
                place.rmdir()
            else:
                place.unlink()
            if aside.exists():
                aside.rename(place)
            with trial.recovery(upstream, relay):
                publisher.resume()
    without_tracebacks([relay])
    trial.finish(upstream, relay)


@row("checkpoint cut short, empty, of foreign bytes, or of a newer format", on=DISKS)
def checkpoint_damaged(trial: Trial) -> None:
    """The position is recovered from the newest files; the damaged one is kept for inspection."""
    upstream = trial.simulate(rate=RATE)
    flags = trial.flags(upstream)
    checkpoint = trial.directory.folder / ".pleiades" / CHECKPOINT
    relay = trial.relay(*flags)
    for damage in (_cut_short, _emptied, _foreign, _newer):
        trial.wait_for_more(relay, RATE)
        assert relay.stop() == 0, relay.log
        checkpoint.write_bytes(damage(checkpoint.read_bytes()))
        trial.survived()
        relay = trial.relay(*flags)
        with trial.recovery(upstream, relay):
            relay.wait_for("checkpoint is unusable")
        without_tracebacks([relay])
    assert len(list(checkpoint.parent.glob("*.damaged-*"))) == trial.outcome.faults
    trial.finish(upstream, relay)


def _cut_short(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


def _emptied(_: bytes) -> bytes:
    return b""


def _foreign(_: bytes) -> bytes:
    return bytes(range(256))


def _newer(whole: bytes) -> bytes:
    content = orjson.loads(whole)
    return orjson.dumps(content | {"version": content["version"] + 1})
