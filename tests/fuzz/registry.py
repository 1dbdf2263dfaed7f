"""All targets, and the kept inputs of each.

`corpus/<target>/` holds one input per file: some valid ones, and every input that was ever a finding.
All are made up.
"""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.target import Target
from tests.fuzz.targets import configuration, http, stored, stream

EXAMPLES = 1200
"""Inputs per target in the test suite; all targets together take a minute."""
SLOW = 300
"""For a target whose inputs take milliseconds."""
CORPUS = Path(__file__).parent / "corpus"

JSON = (
    b"{}",
    b"[]",
    b'"',
    b"null",
    b"true",
    b"0",
    b"-1",
    b"1e999",
    b"\\ud800",
    b"[",
    b'{"":',
    b",",
)
NUMBERS = (b"9", b"0", b"-", b".", b"e", b"253402300799999", b"9007199254740993", b"\xd9\xa3")
PLACE = (b'"topic":"eqiad.x"', b'"partition":0', b'"timestamp":1790000000000', b'"offset":7', b"..")
TIMES = (b"2026-01-02T03:04:05Z", b"0001-01-01", b"9999-12-31", b"+23:59", b"-23:59", b"T24:00")
SSE = (b"data: ", b"id: ", b"event: error", b"retry: 5", b":", b"\n", b"\r", b"\r\n", b"\n\n")
ENCODING = (b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xc2\x85", b"\xed\xa0\x80")
META = (b'{"meta":{', b'"id":"../x"', b'"domain":"canary"', b'"dt":"2026-01-02T03:04:05Z"', b"}}")
PARTS = (b"\n%%\n",)
TOML = (b"\n[kafka]\n", b"\n[file]\n", b"enable = true", b" = ", b"'''", b"#", b"]]", b".a", b"0x")
PROPERTIES = (
    b"sasl.password=",
    configuration.SECRET,
    b"=",
    b"#",
    b"topic.acks=",
    b"bootstrap.servers=",
)
UNITS = (
    b"ms",
    b"s",
    b"m",
    b"h",
    b"d",
    b"now",
    b"http://",
    b"[::1]",
    b":",
    b"@",
    b",",
    b"true",
    b"%",
)
HTTP = (
    b"HTTP/1.1 200 OK\r\n",
    b"Content-Type: text/event-stream\r\n",
    b"\r\n",
    b"Date: ",
    b"gzip, ",
)
HTTP_HEADERS = (
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Encoding: ",
    b"Location: ",
    b"Retry-After: ",
)
DATES = (b"Fri, 02 Jan 2026 03:04:05 GMT", b"+9999", b"-0000", b"99999", b" ", b",", b":", b"(")

TARGETS = {
    "framing": Target(stream.framing, SSE + ENCODING, SLOW),
    "sse_id": Target(stream.sse_id, JSON + PLACE + NUMBERS, EXAMPLES),
    "events": Target(stream.events, SSE + ENCODING + JSON + PLACE + META + PARTS, SLOW),
    "checkpoint": Target(stored.checkpoint, JSON + PLACE + NUMBERS, EXAMPLES),
    "metadata": Target(stored.metadata, JSON + NUMBERS + (b"zlib:",), EXAMPLES),
    "name": Target(stored.name, TIMES + ENCODING + (b".json", b"Z-", b"-", b"/"), EXAMPLES),
    "records": Target(stored.records, JSON + PLACE + META + PARTS + NUMBERS, EXAMPLES),
    "republished": Target(stored.republished, SSE + ENCODING + JSON + PLACE + META, EXAMPLES),
    "recorded": Target(stored.recorded, SSE + JSON + PLACE + META + TIMES, EXAMPLES),
    "config": Target(configuration.config, TOML + JSON + NUMBERS + TIMES + UNITS, SLOW),
    "kafka_config": Target(configuration.kafka_config, PROPERTIES + ENCODING + NUMBERS, SLOW),
    "values": Target(configuration.values, UNITS + NUMBERS + TIMES + ENCODING, SLOW),
    "retry_after": Target(http.retry_after, DATES + NUMBERS, EXAMPLES),
    "answer": Target(http.answer, HTTP + HTTP_HEADERS + DATES + NUMBERS + JSON, SLOW),
    "request": Target(http.request, JSON + PLACE + NUMBERS + TIMES + PARTS + ENCODING, EXAMPLES),
}
"""By the names of their folders."""


def corpus_of(name: str) -> dict[str, bytes]:
    """The kept inputs of a target, by file name."""
    return {file.name: file.read_bytes() for file in sorted((CORPUS / name).iterdir())}
