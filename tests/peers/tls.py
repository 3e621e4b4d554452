"""A certificate that no authority signed."""

import ssl
import subprocess
from pathlib import Path

_MAKE = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=nobody"


def self_signed(directory: Path, name: str = "IP:127.0.0.1") -> ssl.SSLContext:
    """A server's context with a new certificate for `name`, which lies in `directory` as cert.pem."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    where = ["-addext", f"subjectAltName={name}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*_MAKE.split(), *where], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
