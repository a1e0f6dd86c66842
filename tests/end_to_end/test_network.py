"""TLS, CORS, --root-path and Unix sockets, with real processes."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.end_to_end.running_server import Server, as_input, random_embeddings, wait_until

LIMIT = 10.0
EMBEDDINGS = ("--no-engine", "--dim", "8")
ROOT, ORIGIN, KEY, PASSWORD = "/rerankers/colbert", "https://app.example.org", "a-key", "open-sesame"
ROWS = as_input(random_embeddings(2, 8, 1))
BODY = {"query": ROWS, "documents": [ROWS]}
BEARER = {"authorization": f"Bearer {KEY}"}


@dataclass
class Secure:
    """A server with TLS, the authority of its certificate, and where the files lie."""

    server: Server
    authority: trustme.CA
    folder: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.server.url, verify=self.context(), timeout=LIMIT)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), LIMIT)


def write_files(folder: Path, authority: trustme.CA) -> list[str]:
    """A certificate for 127.0.0.1 with an encrypted key; the options that name them."""
    issued = authority.issue_cert("127.0.0.1")
    (folder / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    encryption = BestAvailableEncryption(PASSWORD.encode())
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return ["--ssl-certfile", str(folder / "chain.pem"), "--ssl-keyfile", str(folder / "key.pem")]


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """Everything at once: TLS, keys, a prefix and another site's pages, over two API servers."""
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    options = [*EMBEDDINGS, "--api-server-count", "2", "--root-path", ROOT, "--cors-allow-origin", ORIGIN]
    environment = {"MAXSIMD_API_KEY": KEY, "MAXSIMD_SSL_KEYFILE_PASSWORD": PASSWORD}
    server = Server(*options, *write_files(folder, authority), environment=environment)
    yield Secure(server, authority, folder)
    server.end()


def test_https_is_spoken_by_every_api_server(secure: Secure) -> None:
    assert secure.server.url.startswith("https://")
    for _ in range(4):
        with secure.client() as client:
            answer = client.post("/rerank", json=BODY, headers=BEARER)
            assert answer.status_code == 200 and len(answer.json()["results"]) == 1


def test_who_speaks_plain_http_or_nonsense_gets_no_answer(secure: Secure) -> None:
    for words in (b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 1000):
        with secure.connect() as connection:
            connection.sendall(words)
            assert b"HTTP" not in read_to_the_end(connection)


def read_to_the_end(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_handshakes_that_do_not_come_keep_nobody_waiting(secure: Secure) -> None:
    silent = [secure.connect() for _ in range(50)]
    try:
        silent[0].sendall(b"\x16\x03\x01\x02")  # the beginning of a handshake
        with secure.client() as client:
            assert client.get("/live").status_code == 200
    finally:
        for connection in silent:
            connection.close()


def test_http_1_1_is_what_is_agreed_on(secure: Secure) -> None:
    context = secure.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with context.wrap_socket(secure.connect(), server_hostname="127.0.0.1") as connection:
        assert connection.selected_alpn_protocol() == "http/1.1"
        assert connection.version() in ("TLSv1.2", "TLSv1.3")


def test_the_password_is_not_in_ps(secure: Secure) -> None:
    for pid in (secure.server.process.pid, *secure.server.children()):
        assert PASSWORD not in Path(f"/proc/{pid}/cmdline").read_text()


def test_a_preflight_and_an_error_can_be_read_by_the_page_that_was_named(secure: Secure) -> None:
    asked = {"origin": ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "x-a"}
    with secure.client() as client:
        preflight = client.options(f"{ROOT}/v1/rerank", headers=asked)
        refused = client.post(f"{ROOT}/v1/rerank", json=BODY, headers={"origin": ORIGIN})
        stranger = client.options("/rerank", headers={**asked, "origin": "https://evil.example"})
    assert (preflight.status_code, refused.status_code, stranger.status_code) == (200, 401, 400)
    assert {preflight.headers["access-control-allow-origin"], refused.headers["access-control-allow-origin"]} == {
        ORIGIN
    }
    assert "access-control-allow-origin" not in stranger.headers


def test_the_prefix_opens_nothing(secure: Secure) -> None:
    with secure.client() as client:
        for path in (f"{ROOT}/health", f"{ROOT}/live", "/health"):
            assert client.get(path).status_code == 200, path
        for path in (
            f"{ROOT}/docs",
            f"{ROOT}//health",
            f"{ROOT}/%68ealth/",
            f"{ROOT}%2fhealth/x",
            f"{ROOT}{ROOT}/health",
        ):
            assert client.get(path).status_code == 401, path
        document = client.get(f"{ROOT}/openapi.json", headers=BEARER).json()
        assert document["servers"] == [{"url": ROOT}]
        assert client.post(f"{ROOT}/rerank", json=BODY, headers=BEARER).status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models",
        "//v1/models",
        "//health",
        "/health/",
        "/HEALTH",
        "/health%2f",
        "/health;x",
        "/health/..%2fv1/models",
        "/health/../v1/models",
        "/./health",
        "/health%00",
        "/v1/models?x=/health",
        "http://x/v1/models",
        "http://x//health",
        "*",
        f"{ROOT}//health",
        f"{ROOT}/../health",
        f"{ROOT}/health/..;/v1/models",
    ],
)
def test_no_way_to_write_a_path_opens_it(secure: Secure, target: str) -> None:
    """As bytes: clients tidy paths up."""
    with secure.context().wrap_socket(secure.connect(), server_hostname="127.0.0.1") as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nhost: x/health?\r\nconnection: close\r\n\r\n".encode())
        assert read_to_the_end(connection).startswith(b"HTTP/1.1 401 ")


def test_an_api_server_that_comes_back_needs_no_files(secure: Secure) -> None:
    """Runs last: the files are gone then."""
    for path in secure.folder.iterdir():
        path.unlink()
    victim = secure.server.children("frontend.api_server")[0]
    os.kill(victim, 9)
    wait_until(lambda: "up again" in secure.server.log)
    for _ in range(4):
        with secure.client() as client:
            assert client.get("/live").status_code == 200


def test_clients_without_a_certificate_of_the_authority_are_turned_away(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    authority, strangers = trustme.CA(), trustme.CA()
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    options = [*write_files(tmp_path, authority), "--ssl-ca-certs", str(tmp_path / "ca.pem")]
    server = start(*EMBEDDINGS, *options, environment={"MAXSIMD_SSL_KEYFILE_PASSWORD": PASSWORD})
    secure = Secure(server, authority, tmp_path)
    with secure.client() as client, pytest.raises(httpx.TransportError):
        client.get("/live")
    for issuer, is_let_in in ((strangers, False), (authority, True)):
        context = secure.context()
        issuer.issue_cert("client@example.org").configure_cert(context)
        with httpx.Client(base_url=server.url, verify=context, timeout=LIMIT) as client:
            if is_let_in:
                assert client.post("/rerank", json=BODY).status_code == 200
            else:
                with pytest.raises(httpx.TransportError):
                    client.get("/live")
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_bad_certificate_is_one_line_and_exit_code_2(start: Callable[..., Server], tmp_path: Path) -> None:
    write_files(tmp_path, trustme.CA())
    server = start(*EMBEDDINGS, "--ssl-certfile", str(tmp_path / "key.pem"), wait=False)
    assert server.wait() == 2
    assert server.lines == [f"maxsimd: --ssl-certfile: {tmp_path}/key.pem holds no certificate in PEM form"]


def test_a_unix_socket_s_file_has_its_mode_and_takes_the_place_of_a_stale_one(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = start(*EMBEDDINGS, "--uds", str(path), "--uds-mode", "660")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    second = start(*EMBEDDINGS, "--uds", str(path), wait=False)
    assert second.wait() == 2 and second.lines == [f"maxsimd: --uds {path}: somebody listens there already"]
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.post("http://server/rerank", json=BODY).status_code == 200
    assert server.stop() == 0 and not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(start: Callable[..., Server], tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    server = start(*EMBEDDINGS, "--uds", str(path), wait=False)
    assert server.wait() == 2 and server.lines == [f"maxsimd: --uds {path}: exists, and is no socket"]
    assert path.read_text() == "precious"
