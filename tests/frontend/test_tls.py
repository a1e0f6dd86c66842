"""Certificates and keys: what is wrong with a file is found at start, and said in one line."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from starlette.types import Receive, Scope, Send

from frontend import http_server
from frontend.cli import parse_command_line
from frontend.http_server import HttpServer
from frontend.options import ConfigError
from frontend.tls import make_context

LIMIT = 10.0
PASSWORD = "open-sesame"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files and bad ones."""
    folder = tmp_path_factory.mktemp("tls")
    authority, other = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    key = issued.private_key_pem.bytes()
    encrypted = load_pem_private_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD.encode())
    )
    contents = {
        "chain.pem": chain,
        "key.pem": key,
        "both.pem": key + chain,
        "encrypted.pem": encrypted,
        "other-key.pem": other.issue_cert("localhost").private_key_pem.bytes(),
        "ca.pem": authority.cert_pem.bytes(),
        "bundle.pem": "# Autorité\n".encode() + authority.cert_pem.bytes() + b"\n# Other\r\n" + other.cert_pem.bytes(),
        "torn-chain.pem": b"\n".join(chain.splitlines()[:3]) + b"\n-----END CERTIFICATE-----\n",
        "torn-key.pem": b"\n".join([*key.splitlines()[:2], key.splitlines()[-1]]),
        "der.pem": ssl.PEM_cert_to_DER_cert(authority.cert_pem.bytes().decode()),
        "empty.pem": b"",
        "large.pem": chain * 2000,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def arguments(folder: Path, options: dict[str, str]) -> list[str]:
    """The command line; names of files become paths."""
    words = ["serve"]
    for option, value in options.items():
        words += [f"--ssl-{option}", str(folder / value) if value.endswith(".pem") else value]
    return words


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"certfile": "chain.pem", "keyfile": "key.pem"}, id="two-files"),
        pytest.param({"certfile": "both.pem"}, id="one-file"),
        pytest.param(
            {"certfile": "chain.pem", "keyfile": "encrypted.pem", "keyfile-password": PASSWORD}, id="encrypted"
        ),
        pytest.param({"certfile": "both.pem", "keyfile-password": "not needed"}, id="password-of-nothing"),
        pytest.param({"certfile": "both.pem", "ca-certs": "ca.pem"}, id="client-ca"),
        pytest.param({"certfile": "both.pem", "ca-certs": "bundle.pem"}, id="bundle-with-comments"),
    ],
)
def test_good_files_are_read_once(files: Path, options: dict[str, str]) -> None:
    settings = parse_command_line(arguments(files, options), {}).read_tls()
    assert settings is not None
    context = make_context(settings)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert (context.verify_mode is ssl.CERT_REQUIRED) == ("ca-certs" in options)
    assert "PRIVATE KEY" not in repr(settings)


def test_without_a_certificate_there_is_no_tls() -> None:
    assert parse_command_line(["serve"], {}).read_tls() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"certfile": "none.pem"}, ["--ssl-certfile: cannot read", "No such file"], id="no-file"),
        pytest.param({"certfile": "empty.pem"}, ["--ssl-certfile", "holds no certificate in PEM"], id="empty"),
        pytest.param({"certfile": "der.pem"}, ["--ssl-certfile", "holds no certificate in PEM"], id="der"),
        pytest.param({"certfile": "large.pem"}, ["--ssl-certfile", "has more than 1048576 bytes"], id="large"),
        pytest.param({"certfile": "chain.pem"}, ["--ssl-certfile", "no private key", "--ssl-keyfile"], id="no-key"),
        pytest.param(
            {"certfile": "chain.pem", "keyfile": "chain.pem"}, ["--ssl-keyfile", "no private key"], id="not-a-key"
        ),
        pytest.param(
            {"certfile": "chain.pem", "keyfile": "other-key.pem"},
            ["--ssl-keyfile", "is not the key of the first certificate in"],
            id="another-key",
        ),
        pytest.param(
            {"certfile": "chain.pem", "keyfile": "encrypted.pem"},
            ["--ssl-keyfile", "is encrypted; give --ssl-keyfile-password"],
            id="no-password",
        ),
        pytest.param(
            {"certfile": "chain.pem", "keyfile": "encrypted.pem", "keyfile-password": "wrong"},
            ["--ssl-keyfile", "cannot be read with this --ssl-keyfile-password"],
            id="wrong-password",
        ),
        pytest.param(
            {"certfile": "torn-chain.pem", "keyfile": "key.pem"}, ["--ssl-certfile", "cannot be read"], id="torn-chain"
        ),
        pytest.param(
            {"certfile": "chain.pem", "keyfile": "torn-key.pem"}, ["--ssl-keyfile", "cannot be read"], id="torn-key"
        ),
        pytest.param(
            {"certfile": "both.pem", "ca-certs": "torn-chain.pem"}, ["--ssl-ca-certs", "cannot be read"], id="torn-ca"
        ),
    ],
)
def test_a_bad_file_is_named_with_its_option(files: Path, options: dict[str, str], words: Sequence[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_command_line(arguments(files, options), {}).read_tls()
    message = str(caught.value)
    assert message.startswith(words[0]) and all(word in message for word in words)
    assert "\n" not in message and PASSWORD not in message


@pytest.fixture
def context(files: Path) -> ssl.SSLContext:
    settings = parse_command_line(arguments(files, {"certfile": "both.pem"}), {}).read_tls()
    assert settings is not None
    return make_context(settings)


def test_a_client_that_never_shakes_hands_is_let_go(context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT", 0.05)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("nobody has asked anything")

    async def main() -> None:
        theirs, ours = socket.socketpair()
        ours.setblocking(False)
        closed = asyncio.Event()
        async with asyncio.timeout(LIMIT):
            await HttpServer(app, "maxsimd/test", context).serve(theirs, closed.set)
            await closed.wait()
            assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""
        ours.close()

    asyncio.run(main())


def test_a_stop_does_not_wait_for_the_goodbye_of_an_idle_client(
    context: ssl.SSLContext, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "GOODBYE", 0.05)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def ask(ours: socket.socket) -> ssl.SSLSocket:
        ours.settimeout(LIMIT)
        trusting = ssl.create_default_context(cafile=str(files / "ca.pem"))
        connection = trusting.wrap_socket(ours, server_hostname="localhost")
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 204")
        return connection

    async def main() -> None:
        theirs, ours = socket.socketpair()
        server = HttpServer(app, "maxsimd/test", context)
        asking = asyncio.create_task(asyncio.to_thread(ask, ours))
        await server.serve(theirs, lambda: None)
        connection = await asking
        async with asyncio.timeout(LIMIT):
            assert await server.drain(10 * LIMIT) == 0
        connection.close()

    asyncio.run(main())


ANSWER = b"x" * 2**23
GET = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("says_goodbye", [True, False])
def test_a_large_answer_comes_whole_and_the_connection_ends(
    context: ssl.SSLContext, files: Path, monkeypatch: pytest.MonkeyPatch, says_goodbye: bool
) -> None:
    """Also where the client never says goodbye."""
    if not says_goodbye:
        monkeypatch.setattr(http_server, "UNREAD_TIMEOUT", 2.0)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["scheme"] == "https"
        headers = [(b"content-length", b"%d" % len(ANSWER))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})

    def ask(ours: socket.socket) -> bytes:
        ours.settimeout(LIMIT)
        got = bytearray()
        with ssl.create_default_context(cafile=str(files / "ca.pem")).wrap_socket(
            ours, server_hostname="localhost"
        ) as connection:
            connection.sendall(GET)
            while len(got) <= len(ANSWER) or len(got) < len(ANSWER) + got.index(b"\r\n\r\n") + 4:
                part = connection.recv(2**20)
                assert part
                got += part
            if says_goodbye:
                connection.unwrap().close()
            else:
                closed.wait(LIMIT)
        return bytes(got)

    closed = threading.Event()

    async def main() -> None:
        theirs, ours = socket.socketpair()
        async with asyncio.timeout(LIMIT):
            server = HttpServer(app, "maxsimd/test", context)
            asking = asyncio.create_task(asyncio.to_thread(ask, ours))
            await server.serve(theirs, closed.set)
            assert (await asking).endswith(b"\r\n\r\n" + ANSWER)
            assert await asyncio.to_thread(closed.wait, LIMIT)
            assert server.num_connections == 0

    asyncio.run(main())
