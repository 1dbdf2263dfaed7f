"""Fixed-size digests of identities, by which the window and the destinations remember events.

Law: an identity has one fingerprint, in every process and version. Two identities share one only by a
collision of 128 bits.

A digest takes half the memory of a UUID as text, and a stored one has a fixed length.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

FINGERPRINT_BYTES = 16


def fingerprint(identity: str) -> bytes:
    """The fingerprint of an identity: `FINGERPRINT_BYTES` bytes (BLAKE2b, RFC 7693)."""
    return blake2b(identity.encode(), digest_size=FINGERPRINT_BYTES).digest()


def fingerprints(identities: Iterable[str]) -> list[bytes]:
    """The fingerprint of each identity, in the same order."""
    size_bytes = FINGERPRINT_BYTES
    return [blake2b(identity.encode(), digest_size=size_bytes).digest() for identity in identities]
