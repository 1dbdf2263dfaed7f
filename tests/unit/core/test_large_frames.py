"""A frame of 8 MiB, whatever its shape, costs seconds and less than 250 MB.

Each is read in a separate process, whose CPU time the kernel limits.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pleiades.core.decoding import decode
from pleiades.core.event import Frames
from pleiades.core.framing import MAX_FRAME_BYTES, Framer, ids_from_end, ids_in
from pleiades.core.identity import identify
from pleiades.core.ids import read_ids
from pleiades.core.usual import usual_frames
from pleiades.sinks.kafka.records import key_by_field

MAX_CPU_SECONDS = 20
"""Each takes less than 2, and --hangTimeout is 60."""
MAX_MEGABYTES = 250
CHUNK_BYTES = 1 << 18
SIZE_BYTES = MAX_FRAME_BYTES - 1000

ID = (
    b'id: [{"topic":"eqiad.x","partition":0,"timestamp":1760000000201},'
    b'{"topic":"codfw.x","partition":0,"offset":-1}]\n'
)
META = b'"meta":{"id":"abc","topic":"eqiad.x","partition":0,"offset":7}'
NO_ID = b'"meta":{"topic":"eqiad.x","partition":0,"offset":7}'


def fill(unit: bytes, size_bytes: int = SIZE_BYTES) -> bytes:
    return unit * (size_bytes // len(unit))


def event(data: bytes) -> bytes:
    return b"event: message\n" + ID + b"data: " + data + b"\n\n"


def array(of: bytes, meta: bytes = NO_ID) -> bytes:
    return event(b"{" + meta + b',"a":[' + fill(of + b",") + b"0]}")


SHAPES: dict[str, Callable[[], bytes]] = {
    "a type of 4 MiB, 838,000 data lines": lambda: (
        b"event: " + b"x" * (SIZE_BYTES - (4 << 20)) + b"\n" + ID + fill(b"data\n", 4 << 20) + b"\n"
    ),
    "empty data lines": lambda: ID + fill(b"data\n") + b"\n",
    "types": lambda: fill(b"event: x\n") + ID + b"data: {}\n\n",
    "types and data": lambda: ID + fill(b"event:x\ndata\n") + b"\n",
    "comments": lambda: ID + b"data: {}\n" + fill(b":\n") + b"\n",
    "fields that nobody knows": lambda: ID + b"data: {}\n" + fill(b"xy\n") + b"\n",
    "ids": lambda: b"data: {}\n" + fill(b"id:ab\n") + b"\n",
    "ids with a NUL": lambda: b"data: {}\n" + fill(b"id:\0\n") + b"\n",
    "fields like an id": lambda: b"data: {}\n" + fill(b"idx\n") + b"\n",
    "retries": lambda: b"data: {}\n" + fill(b"retry:1\n") + b"\n",
    "one long id": lambda: b"id: " + fill(b'"timestamp":1760000000201,') + b"\ndata: {}\n\n",
    "CR": lambda: b"data: {}\r" + fill(b":\r") + b"\r",
    "no JSON": lambda: event(b"x" * SIZE_BYTES),
    "nested for ever": lambda: event(b'{"a":' * (SIZE_BYTES // 5)),
    "nested and wide": lambda: event(b"[" * 900 + fill(b"{},")[:-2000] + b"0" + b"]" * 900),
    "nested too deep, and wide": lambda: event(
        b"[" * 1010 + fill(b"{},")[:-3000] + b"0" + b"]" * 1010
    ),
    "objects": lambda: array(b'{"":0}'),
    "objects, known": lambda: array(b'{"":0}', META),
    "arrays": lambda: array(b"[]"),
    "numbers": lambda: array(b"1.5"),
    "long numbers": lambda: array(b"123456789012345678901"),
    "surrogates": lambda: array(b'"\\ud800"'),
    "objects and a surrogate": lambda: event(
        b'{"b":"\\ud800",' + META + b',"a":[' + fill(b"{},")[:-100] + b"0]}"
    ),
    "backslashes": lambda: event(b'{"a":"' + fill(b"\\\\") + b'\\ud800"}'),
    "escapes": lambda: event(b'{"a":"' + fill(b"\\u0041") + b'\\ud800"}'),
    "keys": lambda: event(b"{" + b",".join(b'"%d":0' % n for n in range(600_000)) + b"}"),
    "keys of meta": lambda: event(
        b'{"meta":{"offset":3,' + b",".join(b'"%d":[]' % n for n in range(500_000)) + b"}}"
    ),
    "offsets": lambda: event(b'{"meta":{"topic":"eqiad.x",' + fill(b'"offset":1,') + b'"z":1}}'),
    "an id that is an array": lambda: event(b'{"meta":{"id":[' + fill(b"{},") + b"0]}}"),
    "bytes that are no UTF-8": lambda: event(b'{"a":"' + b"\xff" * SIZE_BYTES + b'"}'),
    "bytes that are no UTF-8, and a character of four": lambda: event(
        b'{"a":"' + b"\xff" * SIZE_BYTES + "\U0001f600".encode() + b'"}'
    ),
    "spaces": lambda: event(b" " * SIZE_BYTES + b"{}"),
    "an error": lambda: b"event: error\ndata: " + b"x" * SIZE_BYTES + b"\n\n",
}


def relay(shape: str, result: Connection) -> None:
    """Process a frame as reader, parser and publisher do."""
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_SECONDS, MAX_CPU_SECONDS))
    stream = SHAPES[shape]()
    framer = Framer()
    became = 0
    for start in range(0, len(stream), CHUNK_BYTES):
        blob = framer.feed(stream[start : start + CHUNK_BYTES])
        list(ids_from_end(blob))
        if usual_frames(blob) is None:
            read_ids(ids_in(blob))
        if blob:
            decoded = decode(Frames(0, 1, blob, b"", 0, 0), keep_canaries=False)
            for received in decoded.batch.events:
                identify(received.key, received.data)
                key_by_field(("a",))(received)
                key_by_field(("meta", "domain"))(received)
            became += len(decoded.batch.events)
            became += len(decoded.upstream_errors)
    result.send((became + framer.oversized_total, peak_kibibytes() / 1024))


def peak_kibibytes() -> int:
    """The peak of this program only: `getrusage` includes the process before exec."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_frame_costs_no_more_than_its_length(shape: str) -> None:
    # Forked from a process that has imported only this module.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=relay, args=(shape, theirs))
    process.start()
    theirs.close()
    process.join()
    assert process.exitcode == 0, "it took too long"
    became, peak_megabytes = ours.recv()
    assert became == 1
    assert peak_megabytes < MAX_MEGABYTES
