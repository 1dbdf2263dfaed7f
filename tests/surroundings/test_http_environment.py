"""Requests to the upstream depend on the settings and on the documented variables, on nothing else."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pleiades.config.settings import UpstreamSettings
from pleiades.runtime.errors import Transient, UsageError
from pleiades.simulator.tls import server_context
from pleiades.sinks.registry import relay_parser
from pleiades.upstream import environment
from pleiades.upstream.environment import proxy_of, refuse_unusable
from pleiades.upstream.http import Upstream
from tests.harness.answers import Server
from tests.harness.prerequisites import OPENSSL
from tests.harness.relay import COMMAND, Relay
from tests.harness.settings import settings_of

ROOT = Path(__file__).resolve().parents[2]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
HEARD = b":ok\n\n"
HOST = "upstream.test"
"""No address of this machine, so that a proxy is asked for it; our proxies lead it to our servers."""
MARK = "hunter2"
VARIABLES = {
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method", "netrc"),
    *("requests_ca_bundle", "curl_ca_bundle", "ssl_cert_file", "ssl_cert_dir", "sslkeylogfile"),
    *("openssl_conf", "openssl_modules"),
}
UNUSABLE = "http://127.0.0.1:1"
"""Nobody listens there."""

Setenv = Callable[..., None]


@pytest.fixture(autouse=True)
def setenv(monkeypatch: pytest.MonkeyPatch) -> Setenv:
    """Sets variables, for a test that starts without those that requests could obey."""
    for name in list(os.environ):
        if name.lower() in VARIABLES or name.startswith("PLEIADES_"):
            monkeypatch.delenv(name)

    def set_all(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return set_all


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    with ExitStack() as servers:

        def start(*answers: bytes) -> Server:
            server = Server(*answers)
            servers.callback(server.close)
            return server

        yield start


@pytest.fixture
def plain(serve: Callable[..., Server]) -> Server:
    """Answers with a stream over plain HTTP: an upstream, or a proxy that makes up the answer."""
    return serve(OK + b"\r\n" + HEARD)


class Tls:
    """TLS for the test's own host, and the file of its authority."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "ca.pem"
        self.context = server_context(HOST, self.ca)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("authority"))


def settings(url: str, **others: Any) -> UpstreamSettings:
    return UpstreamSettings(url, ("recentchange",), "https://example.org/", 60, 5, False, **others)


def heard(url: str, **others: Any) -> bytes:
    """What a stream brings."""
    connection = Upstream(settings(url, **others)).connect(None, 5)
    try:
        return b"".join(connection.chunks())
    finally:
        connection.close()


def refusal(url: str, **others: Any) -> str:
    """The reason why a command does not begin."""
    with pytest.raises(UsageError) as refused:
        refuse_unusable(settings(url, **others))
    assert refused.value.exit_status == 2
    assert MARK not in str(refused.value)
    return str(refused.value)


def failure(url: str, **others: Any) -> Transient:
    """The error of a request that may succeed the next time."""
    with pytest.raises(Transient) as failed:
        heard(url, **others)
    assert MARK not in str(failed.value)
    return failed.value


# ---- servers: each handles one connection after another ----


@contextmanager
def listening(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on this machine; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                # One that breaks off has another certificate in mind.
                with connection, suppress(OSError):
                    handle(connection)

        running = threading.Thread(target=run, daemon=True)
        running.start()
        try:
            yield listener.getsockname()[1]
        finally:
            # Closing alone does not wake accept().
            listener.shutdown(socket.SHUT_RDWR)
    running.join(10)


def head_of(connection: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n") and (byte := connection.recv(1)):
        head += byte
    return head


def stream_over(tls: Tls) -> Callable[[socket.socket], None]:
    """An upstream with TLS."""

    def handle(connection: socket.socket) -> None:
        with tls.context.wrap_socket(connection, True) as wrapped:
            head_of(wrapped)
            wrapped.sendall(OK + b"\r\n" + HEARD)

    return handle


def pump(client: socket.socket, port: int) -> None:
    """Pass bytes between a client and a server on this machine, until one of them leaves."""
    with socket.create_connection(("127.0.0.1", port)) as server:
        sides = {client: server, server: client}
        while True:
            pending = isinstance(client, ssl.SSLSocket) and client.pending()
            ready = [client] if pending else select.select(list(sides), [], [], 10)[0]
            for side in ready:
                if not (passed := side.recv(65_536)):
                    return
                sides[side].sendall(passed)


def http_proxy(port: int, heads: list[bytes], tls: Tls | None = None) -> Callable[..., None]:
    """A proxy, perhaps itself over TLS; whatever is asked of it, it leads to one port."""

    def handle(connection: socket.socket) -> None:
        wrapped = tls.context.wrap_socket(connection, True) if tls else connection
        with wrapped:
            heads.append(head_of(wrapped))
            if heads[-1].startswith(b"CONNECT "):
                wrapped.sendall(b"HTTP/1.1 200 Go on\r\n\r\n")
                pump(wrapped, port)
            else:
                wrapped.sendall(OK + b"\r\n" + HEARD)

    return handle


def socks_proxy(port: int, asked: list[bytes]) -> Callable[..., None]:
    """SOCKS 5 (RFC 1928), which leads every name to one port."""

    def handle(connection: socket.socket) -> None:
        connection.recv(2 + 255)
        connection.sendall(b"\x05\x00")
        version, command, _, kind, size = connection.recv(5)
        assert (version, command, kind) == (5, 1, 3), "it asks by name"
        asked.append(connection.recv(size + 2)[:-2])
        connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
        pump(connection, port)

    return handle


# ---- certificate authorities ----


@pytest.mark.parametrize(
    "variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"]
)
def test_authorities_that_are_not_there_are_named_at_the_start(
    variable: str, setenv: Setenv, tmp_path: Path
) -> None:
    setenv(**{variable: tmp_path / "nowhere"})
    said = refusal(f"https://{HOST}")
    assert variable in said
    assert str(tmp_path / "nowhere") in said
    # Without TLS nobody needs them.
    refuse_unusable(settings(f"http://{HOST}"))


@pytest.mark.parametrize("content", [b"", b"no PEM"])
def test_authorities_that_can_not_be_read_are_named_at_the_start(
    content: bytes, setenv: Setenv, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(content)
    setenv(REQUESTS_CA_BUNDLE=file)
    assert "REQUESTS_CA_BUNDLE" in refusal(f"https://{HOST}")
    setenv(REQUESTS_CA_BUNDLE="x" * 5000)
    assert "REQUESTS_CA_BUNDLE" in refusal(f"https://{HOST}")
    # A folder without hashed names, in which OpenSSL would find nothing.
    setenv(REQUESTS_CA_BUNDLE=tmp_path)
    assert "c_rehash" in refusal(f"https://{HOST}")


@pytest.mark.parametrize("command", ["ingest", "check", "replay"])
def test_a_command_with_an_unusable_environment_ends_with_2(command: str, tmp_path: Path) -> None:
    flags = ["--file.enable", f"--file.publishDir={tmp_path / 'events'}", "--metricsPort=0"]
    flags += ["--from=-1h"] if command == "replay" else []
    ended = subprocess.run(
        [*COMMAND, command, *flags, f"--upstream.url=https://{HOST}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "REQUESTS_CA_BUNDLE": "/nowhere.pem"},
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "REQUESTS_CA_BUNDLE" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "events").exists()


@pytest.mark.parametrize(
    "named", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "--upstream.ca"]
)
def test_authorities_are_obeyed_and_their_loss_is_transient(
    named: str, setenv: Setenv, tls: Tls, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(tls.ca.read_bytes())
    given = {"ca": file} if named.startswith("--") else {}
    if not given:
        setenv(**{named: file})
    with listening(stream_over(tls)) as port:
        url = f"https://127.0.0.1:{port}"
        refuse_unusable(settings(url, **given))
        upstream = Upstream(settings(url, **given))
        upstream.connect(None, 5).close()
        file.unlink()
        with pytest.raises(Transient, match=f"{named} .*{file}.*Nothing is lost") as failed:
            upstream.connect(None, 5)
        assert failed.value.kind == "environment"
        file.write_bytes(tls.ca.read_bytes())
        upstream.connect(None, 5).close()


def test_the_flag_outranks_the_environment(setenv: Setenv, tls: Tls) -> None:
    setenv(REQUESTS_CA_BUNDLE="/nowhere", CURL_CA_BUNDLE="/nowhere", SSL_CERT_FILE="/nowhere")
    refuse_unusable(settings("https://127.0.0.1:1", ca=tls.ca))
    with listening(stream_over(tls)) as port:
        assert heard(f"https://127.0.0.1:{port}", ca=tls.ca) == HEARD


@pytest.mark.needs(OPENSSL)
def test_a_folder_of_hashed_names_is_obeyed(setenv: Setenv, tls: Tls, tmp_path: Path) -> None:
    asked = ["openssl", "x509", "-subject_hash", "-noout", "-in", str(tls.ca)]
    name = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / f"{name}.0").write_bytes(tls.ca.read_bytes())
    with listening(stream_over(tls)) as port:
        url = f"https://127.0.0.1:{port}"
        for variables in (
            {"SSL_CERT_DIR": f"/nowhere:{tmp_path}"},
            {"REQUESTS_CA_BUNDLE": str(tmp_path)},
        ):
            setenv(**variables)
            refuse_unusable(settings(url))
            assert heard(url) == HEARD
            os.environ.pop(*variables)


def test_relative_paths_hold_in_any_working_directory(
    setenv: Setenv, tls: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes run in /."""
    monkeypatch.chdir(tmp_path)
    Path("ca.pem").write_bytes(tls.ca.read_bytes())
    setenv(SSL_CERT_FILE="ca.pem", SSLKEYLOGFILE="$NAME/keys", NAME=tmp_path)
    with listening(stream_over(tls)) as port:
        refuse_unusable(settings(f"https://127.0.0.1:{port}"))
        monkeypatch.chdir("/")
        assert heard(f"https://127.0.0.1:{port}") == HEARD
    assert (tmp_path / "keys").read_bytes()


# ---- TLS itself ----


def test_a_file_of_keys_that_can_not_be_written_is_named(
    setenv: Setenv, tls: Tls, tmp_path: Path
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    setenv(SSLKEYLOGFILE=folder / "log")
    with listening(stream_over(tls)) as port:
        url = f"https://127.0.0.1:{port}"
        refuse_unusable(settings(url, ca=tls.ca))
        (folder / "log").unlink()
        folder.rmdir()
        assert "SSLKEYLOGFILE" in refusal(url, ca=tls.ca)
        lost = failure(url, ca=tls.ca)
    assert "SSLKEYLOGFILE" in str(lost)
    assert lost.kind == "environment"
    # It is not the flag's fault.
    settings_of("--file.enable", f"--upstream.ca={tls.ca}")


def test_a_configuration_of_openssl_that_leaves_no_tls_is_named(tmp_path: Path) -> None:
    file = tmp_path / "openssl.cnf"
    file.write_text("openssl_conf = a\n[a]\nproviders = b\n[b]\nnull = c\n[c]\nactivate = 1\n")
    program = (
        "from tests.surroundings.test_http_environment import *\n"
        "print(refusal('https://upstream.test'))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "OPENSSL_CONF": str(file), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "OPENSSL_CONF" in ended.stdout, ended.stderr


# ---- credentials ----


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_netrc_is_not_read(
    by_variable: bool, setenv: Setenv, plain: Server, tmp_path: Path
) -> None:
    file = tmp_path / ".netrc"
    file.write_text(f"default login relay password {MARK}\n")
    file.chmod(0o600)
    setenv(**({"NETRC": file} if by_variable else {"HOME": tmp_path}))
    assert heard(plain.url) == HEARD
    setenv(http_proxy=plain.url)
    assert heard(f"http://{HOST}/v2") == HEARD
    assert len(plain.requests) == 2
    assert not [request for request in plain.requests if b"uthorization" in request]


def test_a_redirect_brings_no_credentials(serve: Callable[..., Server]) -> None:
    server = serve(b"")
    place = server.url.removeprefix("http://")
    moved = b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nConnection: close\r\nLocation: "
    server.say(moved + f"http://relay:{MARK}@{place}\r\n\r\n".encode(), OK + b"\r\n" + HEARD)
    assert heard(server.url) == HEARD
    assert len(server.requests) == 2
    assert b"Authorization" not in server.requests[1]


def test_no_cookie_is_kept(serve: Callable[..., Server]) -> None:
    server = serve(OK + b"Set-Cookie: a=b; Path=/\r\n\r\n" + HEARD)
    upstream = Upstream(settings(server.url))
    for _ in range(2):
        upstream.connect(None, 5).close()
    assert len(server.requests) == 2
    assert b"Cookie" not in server.requests[1]


@pytest.mark.parametrize("command", ["ingest", "check", "replay"])
@pytest.mark.parametrize(
    "words",
    [
        ("--upstream.url=http://relay:{}@127.0.0.1:1/v2",),
        ("--upstream.url", "http://relay:{}@127.0.0.1:1/v2"),
        ("--upstream.url=http://{}@127.0.0.1:1/v2",),
        ("--upstream.url=http://relay:a/b@{}@127.0.0.1:port/v2",),
        ("--upstream.url=http://relay:12/{}@127.0.0.1/v2",),
        ("--upstream.url=http://127.0.0.1:1", "--upstream.url=relay:{}@127.0.0.1"),
    ],
)
def test_credentials_on_the_command_line_are_refused(
    words: tuple[str, ...], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.format(MARK) for word in words]
    with pytest.raises(SystemExit) as ended:
        relay_parser(command).parse_args(["--file.enable", *given])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "$PLEIADES_UPSTREAM_URL" in said
    assert "--config" in said
    assert MARK not in said


def test_credentials_elsewhere_are_accepted(setenv: Setenv, tmp_path: Path) -> None:
    url = f"http://relay:{MARK}@127.0.0.1:1/v2"
    file = tmp_path / "pleiades.toml"
    file.write_text(f'[upstream]\nurl = "{url}"\n')
    assert settings_of("--file.enable", f"--config={file}").upstream.url == url
    setenv(PLEIADES_UPSTREAM_URL=url)
    assert settings_of("--file.enable").upstream.url == url


# ---- proxies ----


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_this_machine_is_never_asked_for_through_a_proxy(
    variable: str, setenv: Setenv, plain: Server
) -> None:
    setenv(**{variable: UNUSABLE})
    port = plain.url.split(":")[2].split("/")[0]
    for host in ("127.0.0.1", "localhost"):
        assert heard(f"http://{host}:{port}/v2") == HEARD
    for host in ("127.9.9.9", "[::1]", "[::ffff:127.0.0.1]", "LOCALHOST.", "a.localhost"):
        assert proxy_of(f"http://{host}/") is None
    for host in ("128.0.0.1", "[::2]", "localhost.example", "notlocalhost"):
        assert proxy_of(f"http://{host}/") is not None


def test_a_demo_beside_a_proxy_relays(tmp_path: Path) -> None:
    proxies = {"HTTP_PROXY": UNUSABLE, "ALL_PROXY": "nonsense://", "SSL_CERT_FILE": "/nowhere"}
    flags = ("--demo.rate=500", "--metricsPort=0", f"--file.publishDir={tmp_path / 'events'}")
    with Relay("demo", *flags, environment=proxies) as relay:
        relay.until(lambda: any((tmp_path / "events").glob("2*/*.json")), "events", 30)
        assert relay.stop() == 0
    relay.wait_for("0 lost, 0 doubled")


@pytest.mark.parametrize(
    ("exceptions", "is_asked"),
    [
        ("", True),
        ("*", False),
        ("stream.example.org", False),
        ("STREAM.example.ORG", False),
        ("example.org", False),
        (".example.org", False),
        ("*.example.org", False),
        ("ample.org", True),
        ("example.org.", False),
        ("other, example.org", False),
        ("other example.org", False),
        ("other,,", True),
        ("example.org:443", False),
        ("example.org:8443", True),
        ("10.0.0.0/8", True),
        ("[", True),
        (".", True),
    ],
)
def test_no_proxy_names_hosts(exceptions: str, is_asked: bool, setenv: Setenv) -> None:
    setenv(https_proxy=UNUSABLE, NO_PROXY=exceptions)
    assert (proxy_of("https://stream.example.org/v2") is not None) is is_asked


@pytest.mark.parametrize(
    ("exceptions", "host", "is_asked"),
    [
        ("10.1.2.3", "10.1.2.3", False),
        ("10.1.2.3:80", "10.1.2.3", False),
        ("10.1.2.3:81", "10.1.2.3", True),
        ("10.0.0.0/8", "10.1.2.3", False),
        ("10.0.0.0/99", "10.1.2.3", True),
        ("2.3", "10.1.2.3", True),
        ("fd00::/8", "[fd12::1]", False),
        ("[fd12::1]", "[fd12:0::1]", False),
        ("[fd12::1]:80", "[fd12::1]", False),
        ("fe00::/16", "[fd12::1]", True),
        ("*", "[fd12::1]", False),
    ],
)
def test_no_proxy_names_addresses_and_networks(
    exceptions: str, host: str, is_asked: bool, setenv: Setenv
) -> None:
    setenv(http_proxy=UNUSABLE, no_proxy=exceptions)
    assert (proxy_of(f"http://{host}/v2") is not None) is is_asked


@pytest.mark.parametrize(
    ("variables", "chosen"),
    [
        ({"HTTP_PROXY": "http://a"}, None),
        ({"HTTPS_PROXY": "http://a"}, ("http://a", "HTTPS_PROXY")),
        ({"HTTPS_PROXY": "http://a", "https_proxy": "http://b"}, ("http://b", "https_proxy")),
        ({"HTTPS_PROXY": "http://a", "https_proxy": ""}, None),
        ({"ALL_PROXY": "http://a"}, ("http://a", "ALL_PROXY")),
        ({"ALL_PROXY": "http://a", "HTTPS_PROXY": "http://b"}, ("http://b", "HTTPS_PROXY")),
        # urllib would ignore it: a CGI program gets a client's header "Proxy" as HTTP_PROXY.
        ({"HTTPS_PROXY": "http://a", "REQUEST_METHOD": "GET"}, ("http://a", "HTTPS_PROXY")),
        ({"HTTPS_PROXY": " proxy.example:3128\n"}, ("http://proxy.example:3128", "HTTPS_PROXY")),
    ],
)
def test_which_variable_names_the_proxy(
    variables: dict[str, str], chosen: tuple[str, str] | None, setenv: Setenv
) -> None:
    setenv(**variables)
    proxy = proxy_of(f"https://{HOST}/")
    assert (proxy and tuple(proxy)) == chosen


@pytest.mark.parametrize(
    "address",
    [
        "http://relay:{}/x@127.0.0.1:1",
        "http://relay:a#{}@127.0.0.1:1",
        "http://relay:12/{}@127.0.0.1:1",
        "http://relay:12#{}@127.0.0.1:1",
        "socks5h//relay:{}@127.0.0.1:1",
        "http://relay:{}@127.0.0.1:99999",
        "http://relay:{}@127.0.0.1:0",
        "http://relay:{}@",
        "http://relay:{}@[::1",
        "http://relay:{}ł@127.0.0.1:1",
        "ftp://relay:{}@127.0.0.1:1",
        "relay:{}@127.0.0.1:port",
        "http://",
        ":::",
    ],
)
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "all_proxy"])
def test_a_proxy_that_can_not_be_read_is_named_without_its_value(
    address: str, variable: str, setenv: Setenv
) -> None:
    setenv(**{variable: address.format(MARK)})
    said = refusal(f"https://{HOST}")
    assert variable in said
    assert "NO_PROXY" in said
    # A redirect can lead to another scheme, whose proxy nobody looked at.
    lost = failure(f"https://{HOST}")
    assert variable in str(lost)
    assert lost.kind == "environment"


def test_a_socks_proxy_without_its_package_is_named_with_what_to_install(
    setenv: Setenv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "find_spec", lambda _: None)
    setenv(ALL_PROXY=f"socks5h://relay:{MARK}@127.0.0.1:1")
    said = refusal(f"https://{HOST}")
    assert "ALL_PROXY" in said
    assert "pip install 'pleiades[socks]'" in said


def test_a_socks_proxy_is_asked(setenv: Setenv, tls: Tls, plain: Server) -> None:
    asked: list[bytes] = []
    with (
        listening(stream_over(tls)) as port,
        listening(socks_proxy(port, asked)) as proxy,
        listening(socks_proxy(int(plain.url.split(":")[2].split("/")[0]), asked)) as to_plain,
    ):
        setenv(ALL_PROXY=f"socks5h://127.0.0.1:{proxy}")
        assert heard(f"https://{HOST}", ca=tls.ca) == HEARD
        setenv(ALL_PROXY=f"socks5h://127.0.0.1:{to_plain}")
        assert heard(f"http://{HOST}") == HEARD
    assert asked == [HOST.encode()] * 2
    assert re.search(r"127\.0\.0\.1.*ALL_PROXY", str(failure(f"http://{HOST}")))


@pytest.mark.parametrize("over_tls", [False, True])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_gets_its_password_and_nobody_else_does(
    scheme: str, over_tls: bool, setenv: Setenv, tls: Tls
) -> None:
    heads: list[bytes] = []
    with (
        listening(stream_over(tls)) as port,
        listening(http_proxy(port, heads, tls if over_tls else None)) as proxy,
    ):
        address = f"{'https' if over_tls else 'http'}://relay:{MARK}@localhost:{proxy}"
        setenv(**{f"{scheme}_proxy": address})
        refuse_unusable(settings(f"{scheme}://{HOST}", ca=tls.ca))
        assert heard(f"{scheme}://{HOST}", ca=tls.ca) == HEARD
        assert b"\r\nProxy-Authorization: Basic " in heads[0]
        if over_tls:
            # Nobody vouches for the proxy's certificate.
            wrong = str(failure(f"{scheme}://{HOST}"))
            assert "CERTIFICATE_VERIFY_FAILED" in wrong
            assert f"{scheme}_proxy" in wrong
            assert len(heads) == 1
    chosen = proxy_of(f"{scheme}://{HOST}")
    assert chosen is not None
    assert MARK not in repr(chosen) + chosen.address
    gone = failure(f"{scheme}://{HOST}", ca=tls.ca)
    assert f"{scheme}_proxy" in str(gone)
    assert chosen.address in str(gone)


def test_the_images_health_check_asks_no_proxy(setenv: Setenv, plain: Server) -> None:
    (line,) = re.findall(r'CMD (\["python3", "-c", .*\])', (ROOT / "Dockerfile").read_text())
    _, option, program = json.loads(line)
    port = plain.url.split(":")[2].split("/")[0]
    setenv(HTTP_PROXY=UNUSABLE, PLEIADES_METRICS_PORT=port)
    subprocess.run([sys.executable, option, program], check=True, timeout=30)
