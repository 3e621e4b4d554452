"""Self-signed certificates, for a server and for a client."""

import ssl
import subprocess
from pathlib import Path

CERTIFICATE, KEY = "cert.pem", "key.pem"

_MAKE = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=nobody"


def self_signed(directory: Path, name: str = "IP:127.0.0.1") -> ssl.SSLContext:
    """Return a server's context with a new certificate for `name`; `directory` gets cert.pem and key.pem."""
    certificate, key = directory / CERTIFICATE, directory / KEY
    _make("-addext", f"subjectAltName={name}", "-keyout", str(key), "-out", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def client_certificate(directory: Path) -> Path:
    """Write the key and the certificate of a client to client.pem, and the certificate for servers to client.crt."""
    both, certificate = directory / "client.pem", directory / "client.crt"
    _make("-keyout", str(both), "-out", str(certificate))
    both.write_text(both.read_text() + certificate.read_text())
    return both


def _make(*arguments: str) -> None:
    subprocess.run([*_MAKE.split(), *arguments], check=True, capture_output=True)
