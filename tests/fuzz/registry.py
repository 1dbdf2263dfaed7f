"""All targets, and the kept inputs of each.

`corpus/<target>/` holds one input per file: some valid ones, and every input that was ever a finding.
All are made up.
"""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.target import Target
from tests.fuzz.targets import configuration, http, stored, stream, transport

EXAMPLES = 1200
"""Inputs per target in the test suite; all targets together take a minute."""
SLOW = 300
"""For a target whose inputs take milliseconds."""
VERY_SLOW = 100
"""For one that does cryptography."""
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
HTTP_LINES = (
    b"HTTP/1.1 103 Early Hints\r\n\r\n",
    b"HTTP/1.1 302 Found\r\n",
    b"Content-Length: ",
    b"Connection: close\r\n",
    b"Set-Cookie: a=b; Path=/\r\n",
    b" folded\r\n",
)
CHUNKS = (
    b"\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"0\r\nA: b\r\n\r\n",
    b";a=b",
    b"FFFFFFFFFFFFFFF",
    b"\r",
    b" ;",
)
GZIP = (
    bytes.fromhex("1f8b0800000000000203"),
    bytes.fromhex("03000000000000000000"),
    b"\x1f\x8b\x08\x1f",
    b"\0\0\xff\xff",
)
TLS_RECORDS = (
    *(b"\x15\x03\x03\x00\x02\x01\x00", b"\x15\x03\x03\x00\x02\x02\x28", b"\x17\x03\x03\x40\x00"),
    *(
        b"\x16\x03\x03\x00\x04\x00\x00\x00\x00",
        b"\x14\x03\x03\x00\x01\x01",
        b"\x17\x03\x03\x00\x00",
    ),
)
PROXIES = (
    *(b"http://", b"https://", b"socks5h://", b"socks4://", b"[::1]", b":3128", b"user:", b"@"),
    *(
        configuration.SECRET,
        b"%00",
        b"%",
        b"10.0.0.0/8",
        b"fd00::/8",
        b"*",
        b".example.org",
        b"/etc/ssl/certs",
    ),
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
    "records": Target(stored.records, JSON + PLACE + META + PARTS + NUMBERS, SLOW),
    "republished": Target(stored.republished, SSE + ENCODING + JSON + PLACE + META, EXAMPLES),
    "recorded": Target(stored.recorded, SSE + JSON + PLACE + META + TIMES, EXAMPLES),
    "config": Target(configuration.config, TOML + JSON + NUMBERS + TIMES + UNITS, SLOW),
    "kafka_config": Target(configuration.kafka_config, PROPERTIES + ENCODING + NUMBERS, SLOW),
    "values": Target(configuration.values, UNITS + NUMBERS + TIMES + ENCODING, SLOW),
    "retry_after": Target(http.retry_after, DATES + NUMBERS, EXAMPLES),
    "answer": Target(
        http.answer, HTTP + HTTP_LINES + HTTP_HEADERS + CHUNKS + GZIP + DATES + NUMBERS + JSON, SLOW
    ),
    "chunks": Target(transport.chunks, CHUNKS, EXAMPLES),
    "gzipped": Target(transport.gzipped, GZIP + PARTS + SSE, SLOW),
    "tls": Target(
        transport.tls, HTTP + HTTP_LINES + HTTP_HEADERS + CHUNKS + TLS_RECORDS, VERY_SLOW
    ),
    "environment": Target(configuration.environment, PROXIES + PARTS + ENCODING, SLOW),
    "request": Target(http.request, JSON + PLACE + NUMBERS + TIMES + PARTS + ENCODING, EXAMPLES),
}
"""By the names of their folders."""


def corpus_of(name: str) -> dict[str, bytes]:
    """The kept inputs of a target, by file name."""
    return {file.name: file.read_bytes() for file in sorted((CORPUS / name).iterdir())}
