"""Proxies from the environment: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, also in lower case."""

from collections.abc import Mapping
from urllib.request import getproxies, proxy_bypass

import httpx

from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.remotes.hosts import is_loopback

_SCHEMES = ("http", "https")


class Proxies:
    """The proxies that the environment named when this object was made."""

    def __init__(self, proxies: Mapping[str, str] | None = None) -> None:
        self._proxies = dict(getproxies() if proxies is None else proxies)

    def proxy_for(self, url: httpx.URL) -> httpx.URL | None:
        """Proxy for a URL; None for a direct connection. Loopback addresses are always direct, as in Go's clients.

        Raises:
            InvalidInput: the environment has no valid proxy URL. The message omits the URL, which may contain a password.
        """
        text = self._proxies.get(url.scheme) or self._proxies.get("all")
        if not text or is_loopback(url.host) or proxy_bypass(_netloc(url), self._proxies):
            return None
        proxy = _parse(text)
        if proxy is None:
            name = f"{url.scheme.upper()}_PROXY"
            raise InvalidInput(
                f"proxy for {url.host}: expected http://HOST:PORT or https://HOST:PORT in {name}, got another value"
            )
        return proxy


def _parse(text: str) -> httpx.URL | None:
    try:
        proxy = httpx.URL(text if "://" in text else f"http://{text}")
    except httpx.InvalidURL:
        return None
    return proxy if proxy.scheme in _SCHEMES and proxy.host else None


def _netloc(url: httpx.URL) -> str:
    return url.netloc.decode("ascii")
