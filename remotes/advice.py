"""Remedies for failures of TLS, in terms of what the user can set: command options, keys of a file, parameters of a run."""

from dataclasses import dataclass, fields, replace
from typing import Self

TLS_ADVICE = "dist.tls_advice"
"""Extension of a request: the `TlsAdvice` for its server."""


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class TlsAdvice:
    """A remedy for each TLS failure; `{server}` is replaced by `host[:port]`.

    `authority`: trust the signer of a certificate. `any_certificate`: accept whatever the server shows. `certificate`: show
    one of our own. `http` and `https`: use that scheme.
    """

    authority: str
    any_certificate: str
    certificate: str
    http: str
    https: str

    def for_server(self, server: str) -> Self:
        """The advice with the name of a server."""
        texts = {field.name: getattr(self, field.name).replace("{server}", server) for field in fields(self)}
        return replace(self, **texts)

    @classmethod
    def of_file(cls, at: str, *, authority: str = "caFile", certificate: str = "certFile") -> Self:
        """The advice to set keys `at` a place in a file; the keys for certificates have these names."""
        return cls(
            authority=f"set {authority}",
            any_certificate=f"take any with tls: insecure, in {at}",
            certificate=f"set {certificate} in {at}",
            http=f"set tls: disabled in {at}",
            https=f"set tls: enabled in {at}",
        )


OPTIONS = TlsAdvice(
    authority="trust who signed it with --ca-file",
    any_certificate="take any with --insecure {server}",
    certificate="set certFile in the file of hosts",
    http="give --plain-http, or set tls: disabled for it in a file of hosts",
    https="set tls: enabled for it in a file of hosts",
)
PARAMETERS = TlsAdvice(
    authority="set ca_file in the run's parameter network",
    any_certificate="add {server} to insecure there",
    certificate="set certFile in the file that hosts in the run's parameter network names",
    http="set plain_http in the run's parameter network, or tls: disabled in the file that hosts there names",
    https="set tls: enabled in the file that hosts in the run's parameter network names",
)
