"""TLS: the server's certificate and key, read once by the launcher; the handshakes are the API servers'.

The texts of the files travel to the API servers on their stdin, so that one that is started again does not depend on
what lies on disk by then.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from frontend.options import ConfigError

LARGEST = 2**20  # bytes: certificates and keys are small
_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_PRIVATE_KEY = "PRIVATE KEY-----"
_BLOCK = re.compile(rb"-----BEGIN [A-Z0-9 ]+-----.+?-----END [A-Z0-9 ]+-----", re.DOTALL)  # bundles have comments
_ENCRYPTED = ("ENCRYPTED PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED")


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an API server needs for TLS, as PEM texts.

    Attributes:
        client_ca: whoever connects must show a certificate that one of these has signed; None: nobody must.
    """

    certificates: str
    private_key: str
    password: str | None = None
    client_ca: str | None = None

    def __repr__(self) -> str:
        """Without the key."""
        return "TlsSettings(...)"


def read_tls(certfile: str, keyfile: str | None, password: str | None, ca_certs: str | None) -> TlsSettings:
    """The files' contents, tried out.

    Raises:
        ConfigError: a file cannot be read, or holds something else than it should; names the option and the rule.
    """
    certificates = _read("--ssl-certfile", certfile, _CERTIFICATE, "certificate")
    key_option, key_path = ("--ssl-certfile", certfile) if keyfile is None else ("--ssl-keyfile", keyfile)
    key = _read(key_option, key_path, _PRIVATE_KEY, "private key", "; name its file with --ssl-keyfile" * (not keyfile))
    client_ca = None if ca_certs is None else _read("--ssl-ca-certs", ca_certs, _CERTIFICATE, "certificate")
    settings = TlsSettings(certificates, key, password, client_ca)
    if password is None and any(mark in key for mark in _ENCRYPTED):
        raise ConfigError(f"{key_option}: {key_path} is encrypted; give --ssl-keyfile-password")
    try:
        make_context(settings)
    except ssl.SSLError as error:
        raise ConfigError(_explain(error, settings, certfile, key_option, key_path, ca_certs)) from None
    return settings


def make_context(settings: TlsSettings) -> ssl.SSLContext:
    """What handshakes are made with: TLS 1.2 or later, HTTP/1.1.

    Raises:
        ssl.SSLError: the texts are not what they should be.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # each would cost a handshake, without end
    context.set_alpn_protocols(["http/1.1"])
    with ExitStack() as files:
        certificates = files.enter_context(_as_file(settings.certificates))
        key = files.enter_context(_as_file(settings.private_key))
        # Never None: OpenSSL would ask at the terminal.
        context.load_cert_chain(certificates, key, settings.password or "")
    if settings.client_ca is not None:
        context.load_verify_locations(cadata=settings.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _read(option: str, path: str, mark: str, content: str, hint: str = "") -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{option}: cannot read {path}: {error.strerror}") from None
    if len(data) > LARGEST:
        raise ConfigError(f"{option}: {path} has more than {LARGEST} bytes")
    blocks = [block.decode("ascii", "replace") for block in _BLOCK.findall(data)]
    if not any(mark in block for block in blocks):
        raise ConfigError(f"{option}: {path} holds no {content} in PEM form{hint}")
    return "\n".join(blocks)


def _explain(
    error: ssl.SSLError, settings: TlsSettings, certfile: str, key_option: str, key_path: str, ca_certs: str | None
) -> str:
    """OpenSSL's complaint, which seldom says what it is about, in terms of the options."""
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{key_option}: {key_path} is not the key of the first certificate in {certfile}"
    if not _holds_certificates(settings.certificates):
        return f"--ssl-certfile: {certfile} holds a certificate that cannot be read"
    if settings.client_ca is not None and not _holds_certificates(settings.client_ca):
        return f"--ssl-ca-certs: {ca_certs} holds a certificate that cannot be read"
    if error.reason is not None:
        return f"--ssl-certfile: {certfile} cannot be used: {error.reason}"
    password = " with this --ssl-keyfile-password" * any(mark in settings.private_key for mark in _ENCRYPTED)
    return f"{key_option}: {key_path} holds a private key that cannot be read{password}"


def _holds_certificates(text: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text)
    except ssl.SSLError:
        return False
    return True


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """A path that OpenSSL can read the text from, and that exists in this process's memory only."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, text.encode() + b"\n")
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
