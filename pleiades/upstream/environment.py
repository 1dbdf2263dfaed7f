"""The variables of the environment that requests to the upstream obey: proxies, authorities, TLS.

Law: nothing else decides. requests reads no variable and no file by itself (`trust_env`): it would also
send a password from ~/.netrc, and would ask a proxy for this machine's own addresses.

The parent imports this module, and requests only where a proxy is set: it takes megabytes.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import ssl
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import certifi

from pleiades.config.settings import UpstreamSettings
from pleiades.config.values import unusable_certificates, unusable_openssl
from pleiades.runtime.errors import UsageError
from pleiades.runtime.logs import printable

BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Each names a file or a folder; the first one that is set counts."""
KEY_LOG = "SSLKEYLOGFILE"
OPENSSL = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""Count together if no bundle is set. OpenSSL takes several folders, joined by colons."""

SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
"""Of proxies."""
PORTS = {"http": 80, "https": 443}
# A host or network, perhaps in brackets, and perhaps a port. An IPv6 address without brackets has none.
_EXCEPTION = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::([0-9]+))?")


# ---- proxies ----


class Proxy(NamedTuple):
    """The proxy for a URL."""

    url: str
    """With its scheme. May hold a password."""
    variable: str
    """The variable that names it."""

    def __repr__(self) -> str:
        """Without the password."""
        return self.address

    @property
    def address(self) -> str:
        """Fit to be shown."""
        parts = urlsplit(self.url)
        return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}")

    @property
    def is_socks(self) -> bool:
        """True if it speaks SOCKS, not HTTP."""
        return self.url.startswith("socks")


def proxy_of(url: str) -> Proxy | None:
    """The proxy through which to ask for a URL; None: there is none.

    Raises:
        UsageError: a variable names one that can't be used. No value is shown: it may hold a password.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    variable, address = _either_case(f"{parts.scheme}_proxy")
    if not address:
        variable, address = _either_case("all_proxy")
    if not address or _is_loopback(host):
        return None
    _, exceptions = _either_case("no_proxy")
    if any(_is_excepted(host, parts, each) for each in re.split(r"[\s,]+", exceptions.lower())):
        return None
    proxy = Proxy(address if "://" in address else f"http://{address}", variable)
    if not _is_readable(proxy.url):
        raise UsageError(
            f"the environment variable {variable} is not the address of a proxy, such as "
            "http://proxy.example:3128 or http://USER:PASSWORD@proxy.example:3128, in which special "
            "characters of user and password are percent-encoded. Correct or unset it, or except the "
            "upstream by NO_PROXY"
        )
    if proxy.is_socks and find_spec("socks") is None:
        raise UsageError(
            f"the environment variable {variable} names a SOCKS proxy, for which a package is missing. "
            "Install it (pip install 'pleiades[socks]'), unset the variable, or except the upstream by "
            "NO_PROXY"
        )
    return proxy


def _is_readable(url: str) -> bool:
    import requests.adapters
    import urllib3

    try:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.hostname or parts.port == 0:
            return False
        # A password with a plain slash or the like, or a scheme without its colon.
        if "@" in parts.path + parts.query + parts.fragment:
            return False
        if not parts.scheme.startswith("socks"):
            # What requests makes of it: urllib3's idea of an address, and a header of the password.
            requests.adapters.HTTPAdapter().proxy_manager_for(url)
        return bool(urllib3.util.parse_url(url).host)
    # All that they raise for an address or a password.
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    """True for this machine: a proxy's own loopback is another one."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    mapped = getattr(address, "ipv4_mapped", None)
    return address is not None and (mapped or address).is_loopback


# `requests.utils.should_bypass_proxies` is no substitute: it has no IPv6 networks, an entry with a port
# matches neither an address nor a default port, and 2.3 matches 10.1.2.3. Nor does it except loopback.
def _is_excepted(host: str, parts: SplitResult, exception: str) -> bool:
    """True if an entry of NO_PROXY (lower case) is about this URL."""
    split = _EXCEPTION.fullmatch(exception)
    bracketed, name, port = split.groups() if split else (None, exception, None)
    if port and int(port[:6]) != (parts.port or PORTS.get(parts.scheme)):
        return False
    name = bracketed or name or ""
    address = _address(host)
    if address is not None:
        try:
            return name == "*" or address in ipaddress.ip_network(name, strict=False)
        except ValueError:
            return False
    domain = name.removeprefix("*").strip(".")
    return name == "*" or (domain != "" and f".{host}".endswith(f".{domain}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


# ---- certificate authorities ----


class Authorities(NamedTuple):
    """The certificate authorities to trust."""

    file: str | None
    """PEM."""
    folder: str | None
    """A folder of hashed names (c_rehash), or several, joined by colons."""
    named_by: str
    """The flag or the variables that name them."""


def authorities(ca: Path | None) -> Authorities:
    """Those that a flag or the environment names, or those that come with requests.

    Args:
        ca: of `--upstream.ca`.
    """
    if ca is not None:
        return Authorities(str(ca), None, "--upstream.ca")
    variable, bundle = _variable(*BUNDLES)
    if bundle:
        # `Path.is_dir` raises if the name is too long.
        is_folder = os.path.isdir(bundle)  # noqa: PTH112
        file, folder = (None, bundle) if is_folder else (bundle, None)
        return Authorities(file, folder, f"the environment variable {variable}")
    file, folder = (os.environ.get(name) or None for name in OPENSSL)
    if file or folder:
        named = " and ".join(name for name in OPENSSL if os.environ.get(name))
        return Authorities(file, folder, f"the environment variable {named}")
    return Authorities(certifi.where(), None, "the package certifi")


# ---- all of it ----


def refuse_unusable(settings: UpstreamSettings) -> None:
    """Call it once, at the start of a command; makes the paths in the environment absolute.

    Raises:
        UsageError: requests to the upstream can't obey a variable.
    """
    # The processes leave the working directory. Kafka's client has OpenSSL's variables, too.
    for name in (*BUNDLES, *OPENSSL, KEY_LOG):
        if value := os.environ.get(name):
            paths = value.split(":") if name == "SSL_CERT_DIR" else [value]
            # Without a working directory a relative path is one that is not there.
            with contextlib.suppress(OSError):
                os.environ[name] = ":".join(_absolute(name, path) for path in paths if path)
    for wrong in unusable(settings.url, settings.ca):
        raise UsageError(wrong)


def unusable(url: str, ca: Path | None) -> Iterator[str]:
    """What a request for a URL can't use; each says which variable is wrong, and what to do.

    Args:
        ca: of `--upstream.ca`.
    """
    try:
        proxy = proxy_of(url)
    except UsageError as error:
        yield str(error)
        return
    if not (url.startswith("https:") or (proxy and proxy.url.startswith("https:"))):
        return
    yield from filter(None, (unusable_openssl(), _unusable_authorities(ca), _unusable_key_log()))


def _unusable_authorities(ca: Path | None) -> str:
    trusted = authorities(ca)
    for path, reason in (
        (trusted.file, trusted.file and unusable_certificates(trusted.file)),
        (trusted.folder, trusted.folder and unusable_certificates(folder=trusted.folder)),
    ):
        if reason:
            return (
                f"the certificate authorities of {trusted.named_by} can't be used: "
                f"{printable(str(path))}: {reason}. Correct the path, or make them readable"
            )
    return ""


def _unusable_key_log() -> str:
    file = os.path.expandvars(os.environ.get(KEY_LOG, ""))
    try:
        if file:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).keylog_filename = file
    except (OSError, ValueError) as error:
        return (
            f"the environment variable {KEY_LOG} names a file that can't be written: "
            f"{getattr(error, 'strerror', None) or error}. Correct the path, or unset it: it is needed "
            "only to decrypt recorded traffic"
        )
    return ""


def _absolute(variable: str, path: str) -> str:
    # urllib3 expands the variables in this one.
    return str(Path(os.path.expandvars(path) if variable == KEY_LOG else path).absolute())


def _variable(*names: str) -> tuple[str, str]:
    """Name and value of the first one that is not empty; twice empty: there is none."""
    found = ((name, os.environ.get(name, "").strip()) for name in names)
    return next((pair for pair in found if pair[1]), ("", ""))


def _either_case(name: str) -> tuple[str, str]:
    """Name and value of a variable in lower case, or else in capitals, as everybody reads these.

    In lower case, an empty one turns off what the other one says.
    """
    name = name if name in os.environ else name.upper()
    return name, os.environ.get(name, "").strip()
