"""Where the registry of a host is reached."""

import ipaddress

# Docker Hub's name in references is not the name of its registry.
_ALIASES = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


def base_url(host: str, *, plain_http: bool) -> str:
    """The URL of a registry: https, or http if asked for or on a loopback address, as container engines do."""
    scheme = "http" if plain_http or _is_loopback(host) else "https"
    return f"{scheme}://{_ALIASES.get(host, host)}"


def _is_loopback(host: str) -> bool:
    name = host[1 : host.index("]")] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
