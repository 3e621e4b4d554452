"""One repository of one registry: sends requests with authorisation, and converts failures to errors.

`send_read` and `send_write` are the two ways to reach a registry. The choice of requests is left to `remotes.fetcher`,
`remotes.pusher` and `remotes.listing`.
"""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import httpx

from prefect_dist.ocispec.errors import Unavailable, Unsupported
from prefect_dist.remotes.auth import HostAuth, RegistryAuth, is_same_server
from prefect_dist.remotes.errors import ADVICE, from_response, from_transport, one_line, redact
from prefect_dist.remotes.guard import GUARD, Guard, GuardedOrigin
from prefect_dist.remotes.hosts import Capability
from prefect_dist.remotes.sizes import RegistrySizes
from prefect_dist.remotes.token import delete_scope, pull_scope, push_scope

_NONE: Mapping[str, str] = MappingProxyType({})
# Statuses of object stores for an expired signed URL: 403 from Amazon, Azure and CloudFront, 400 from Google.
_EXPIRED = frozenset({400, 403})


class Repository:
    """Sends the requests of a repository. Thread-safe, because immutable (containerd 2e0c92b168).

    `url` is the repository's URL, such as `https://ghcr.io/v2/a/b`; `locator` is its name in messages, `ghcr.io/a/b`.
    `unsupported` are the missing features of the registry. `scope` is the token scope for reading, by default a pull from
    `name`. `origin` identifies the registry to guards, and `sizes` are its limits; the repositories of a registry share both.
    """

    def __init__(
        self,
        client: httpx.Client,
        host: HostAuth,
        *,
        url: str,
        name: str,
        locator: str,
        unsupported: frozenset[Capability] = frozenset(),
        scope: str | None = None,
        origin: GuardedOrigin | None = None,
        sizes: RegistrySizes | None = None,
    ) -> None:
        self.sizes = sizes or RegistrySizes()
        self.url, self.name, self.locator, self.unsupported = url, name, locator, unsupported
        self._client, self._host = client, host
        self._own = httpx.URL(url)
        self._origin = origin or GuardedOrigin(self._own, name=locator.partition("/")[0])
        self._pull, self._push = RegistryAuth(host, scope or pull_scope(name)), RegistryAuth(host, push_scope(name))
        self._delete = RegistryAuth(host, delete_scope(name))

    def send_read(self, method: str, target: str | httpx.URL, *, subject: str, headers: Mapping[str, str]) -> httpx.Response:
        """Send a request that reads; return the open response, with any status.

        `target` is a path in this repository, or a URL at the registry (see `owns`). `subject` names the requested content in
        errors. If the target of a redirect refuses the request, the registry gets the request once more: the registry may have
        returned an expired signed URL.

        Raises:
            DistError: no response arrived, see `remotes.errors.from_transport`.
        """
        url = target if isinstance(target, httpx.URL) else self.url_of(target)
        auth = self._pull if self.owns(url) else None
        response = self._send(method, url, auth, subject=subject, headers=headers)
        if response.status_code in _EXPIRED and response.history and not is_same_server(response.request.url, url):
            response.close()
            response = self._send(method, url, auth, subject=subject, headers=headers)
        return response

    def get_foreign_url(self, url: httpx.URL, *, subject: str, headers: Mapping[str, str]) -> httpx.Response:
        """Send a GET to a URL from a manifest; return the open response. No credentials are sent, see `remotes.guard.Guard`.

        Raises:
            Denied: the URL, or the target of a redirect, is not at a public address.
            DistError: as `send_read`.
        """
        return self._send("GET", url, None, subject=subject, headers=headers, guard=Guard())

    def url_of(self, path: str) -> httpx.URL:
        """Return the URL of a path in this repository."""
        return httpx.URL(f"{self.url}/{path}")

    def owns(self, url: httpx.URL) -> bool:
        """Return True if a URL from a response is at this registry, and does not downgrade https to http."""
        return is_same_server(url, self._own)

    def send_write(
        self,
        method: str,
        target: str | httpx.URL,
        *,
        expected: Collection[int],
        subject: str,
        headers: Mapping[str, str] = _NONE,
        body: Iterable[bytes] | bytes = b"",
        source: str | None = None,
    ) -> httpx.Response:
        """Send a request that writes or deletes; return the closed response, whose status is in `expected`.

        `target` is a path in this repository, or a URL that the registry returned. A `body` in pieces needs its Content-Length
        in `headers`, and is iterated again if the request is sent again: after a 401 or a redirect. A mount names its `source`
        repository.

        Raises:
            RegistryError: another status, see `remotes.errors.from_response`.
            Unsupported: a redirect that would turn the request into a GET.
            Denied: a redirect to an address that is not allowed, or of a deletion or manifest to another server.
            DistError: there is no response, see `remotes.errors.from_transport`; or an error of iterating `body`.
        """
        url = target if isinstance(target, httpx.URL) else self.url_of(target)
        auth = self._delete if method == "DELETE" else self._push
        if source:
            auth = RegistryAuth(self._host, push_scope(self.name), pull_scope(source))
        # Deletions and manifests stay at the registry: at another server they would change another registry. Only uploads may
        # be redirected, for example to an object store, which never gets the registry's credentials.
        guard = Guard(self._origin, same_server=method == "DELETE" or (method == "PUT" and not isinstance(target, httpx.URL)))
        own_auth = auth if self.owns(url) else None
        response = self._send(method, url, own_auth, subject=subject, headers=headers, body=body, guard=guard)
        try:
            if response.request.method != method:  # RFC 9110, 15.4: the response is not about the write
                raise Unsupported(
                    f"the registry redirected {method} to {redact(response.request.url)}, which turns it into GET",
                    subject=subject,
                )
            if response.status_code not in expected:
                raise from_response(subject, response)
        finally:
            response.close()
        return response

    def _send(
        self,
        method: str,
        url: httpx.URL,
        auth: RegistryAuth | None,
        *,
        subject: str,
        headers: Mapping[str, str],
        body: Iterable[bytes] | bytes = b"",
        guard: Guard | None = None,
    ) -> httpx.Response:
        extensions: dict[str, Any] = {GUARD: guard or Guard(self._origin)}
        if auth:
            extensions[ADVICE] = self._host.login.advice
        try:
            request = self._client.build_request(
                method, url, headers=dict(headers), content=body or None, extensions=extensions
            )
            return self._client.send(request, auth=auth, stream=True)
        except httpx.RequestError as exc:
            raise from_transport(subject, exc) from exc
        except httpx.InvalidURL as exc:
            raise Unavailable(f"the server redirected to an invalid URL ({one_line(str(exc))})", subject=subject) from exc
