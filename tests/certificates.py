"""Certificates for tests: an authority of the test's own, and what it signs for servers and clients."""

from __future__ import annotations

import datetime as dt
import ssl
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

DAY = dt.timedelta(days=1)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class Authority:
    """Signs certificates, whose files it puts in `folder`; `ca` is the one to trust."""

    folder: Path
    name: str = "test authority"
    key: Any = field(default_factory=_key)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ca = self._write("ca.pem", self._signed(self.name, self.key, None, 1), None)

    def issue(self, name: str, *, days: int = 1) -> tuple[str, str]:
        """Make a certificate for a host name or an IP address; returns its file and its key's."""
        key = _key()
        certificate = self._write(f"{name}.pem", self._signed(name, key, name, days), None)
        return certificate, self._write(f"{name}.key", None, key)

    def context(self, name: str, *, days: int = 1, asks_for: str | None = None) -> ssl.SSLContext:
        """Return a server's context; `asks_for` is the file of the authority of clients, where they must have one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(name, days=days))
        if asks_for:
            context.load_verify_locations(asks_for)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _signed(self, subject: str, key: Any, name: str | None, days: int) -> x509.Certificate:
        today = dt.datetime.now(dt.UTC)
        begin, end = today - 9 * DAY, today + days * DAY
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(subject))
            .issuer_name(_named(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=name is None, path_length=None), critical=True)
        )
        if name is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(name)]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def _write(self, file: str, certificate: x509.Certificate | None, key: Any) -> str:
        pem = serialization.Encoding.PEM
        plain = (pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        path = self.folder / file
        path.write_bytes(certificate.public_bytes(pem) if certificate else key.private_bytes(*plain))
        return str(path)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
