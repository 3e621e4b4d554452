"""Remedies for TLS failures, phrased for the place where the user can change the setting.

That place is a command option, a key of a configuration file, or a flow parameter. `remotes.errors` puts the remedy into the
message.
"""

from dataclasses import dataclass, fields, replace
from typing import Self

TLS_ADVICE = "dist.tls_advice"
"""Extension of a request: the `TlsAdvice` for its server."""


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class TlsAdvice:
    """A remedy for each TLS failure, as an imperative phrase; `{server}` is replaced by `host[:port]`.

    `authority`: trust the CA that signed the server's certificate. `any_certificate`: skip verification. `certificate`: send a
    client certificate. `http` and `https`: use that scheme.
    """

    authority: str
    any_certificate: str
    certificate: str
    http: str
    https: str

    def for_server(self, server: str) -> Self:
        """Return the advice with `{server}` replaced."""
        texts = {field.name: getattr(self, field.name).replace("{server}", server) for field in fields(self)}
        return replace(self, **texts)

    @classmethod
    def of_file(cls, at: str, *, authority: str = "caFile", certificate: str = "certFile") -> Self:
        """Return the advice to set keys of a file. `at` names the file and the section in messages.

        `authority` and `certificate` are the names of the keys for the CA and for the client certificate.
        """
        return cls(
            authority=f"add its CA with {authority}",
            any_certificate=f"skip verification with tls: insecure, in {at}",
            certificate=f"set {certificate} in {at}",
            http=f"set tls: disabled in {at}",
            https=f"set tls: enabled in {at}",
        )


OPTIONS = TlsAdvice(
    authority="add its CA with --ca-file",
    any_certificate="skip verification with --insecure {server}",
    certificate="set certFile in the hosts file",
    http="use --plain-http, or set tls: disabled for this registry in a hosts file",
    https="set tls: enabled for this registry in a hosts file",
)
PARAMETERS = TlsAdvice(
    authority="add its CA with ca_file in the parameter network",
    any_certificate="add {server} to insecure in the parameter network",
    certificate="set certFile in the hosts file (hosts in the parameter network)",
    http="set plain_http in the parameter network, or tls: disabled in the hosts file (hosts in the parameter network)",
    https="set tls: enabled in the hosts file (hosts in the parameter network)",
)
