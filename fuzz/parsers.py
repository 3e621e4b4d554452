"""`make fuzz`: fuzz every parser of foreign input with atheris, a minute in total, each target in its own process.

A target takes any bytes, and may raise only the errors of `ocispec.errors`. An input that causes another error is written to
build/.
"""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["prefect_dist"]):
    import httpx

    from prefect_dist.mirror import templates, yamlfile
    from prefect_dist.mirror.config import load
    from prefect_dist.mirror.skopeo import convert_skopeo
    from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference, config, fields, manifest, referrers
    from prefect_dist.ocispec.errors import DistError
    from prefect_dist.ocispec.mediatypes import MANIFESTS
    from prefect_dist.ocispec.reference import expand
    from prefect_dist.remotes import errors, foreign, headers, listing
    from prefect_dist.remotes.credentials import RegistryLogin
    from prefect_dist.remotes.throttled import read_quota
    from prefect_dist.remotes.token import Tokens, TokenServer

_SECONDS = 60
_TOP = Path(__file__).parents[1]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _answer(data: bytes) -> httpx.Response:
    """Return a response with these bytes as the value of every header that the client reads."""
    value = data.replace(b"\r", b"").replace(b"\n", b"")
    names = (b"content-length", b"docker-content-digest", b"range", b"location", b"link", b"retry-after", b"ratelimit-limit")
    request = httpx.Request("GET", "https://registry.example/v2/")
    return httpx.Response(429, headers=[(name, value) for name in names], content=data, request=request)


def reference(data: bytes) -> None:
    """Parse references. The text of a parsed reference parses to an equal reference."""
    text = _text(data)
    parsed = Reference.parse(expand(text))
    assert Reference.parse(str(parsed)) == parsed
    Digest.parse(text)


def platform(data: bytes) -> None:
    """Parse platforms. The text of a parsed platform parses to an equal platform."""
    parsed = Platform.parse(_text(data))
    assert Platform.parse(str(parsed)) == parsed


def manifests(data: bytes) -> None:
    """Parse manifests from a registry, under every media type."""
    for media_type in MANIFESTS:
        try:
            manifest.children(data, media_type, at="fuzz")
        except DistError:
            continue
    manifest.media_type_of(data, at="fuzz")


def referrer_lists(data: bytes) -> None:
    """Parse manifests with a subject, and indexes of referrers."""
    some = Descriptor(media_type=MANIFESTS[0], digest=Digest.of(data), size=len(data))
    if referrers.is_index(data):
        referrers.add_entry(data, some, at="fuzz")
    with contextlib.suppress(DistError):
        referrers.make_entry(data, some, at="fuzz")
    manifest.subject(data, MANIFESTS[0], at="fuzz")


def configs(data: bytes) -> None:
    """Parse image configs and descriptors."""
    with contextlib.suppress(DistError):
        config.platform(data, at="fuzz")
        config.diff_ids(data, at="fuzz")
    Descriptor.from_json(fields.parse_object(data, at="fuzz"), at="fuzz")


def challenges(data: bytes) -> None:
    """Parse WWW-Authenticate headers, and the token server in each challenge."""
    for one in headers.parse_challenges([_text(data)]):
        with contextlib.suppress(DistError):
            TokenServer.from_challenge(one, host="fuzz")


def tokens(data: bytes) -> None:
    """Parse the response of a token server."""
    server = TokenServer(realm=httpx.URL("https://tokens.example/"), service=None)
    asking = Tokens(RegistryLogin(host="fuzz")).fetch_token(server, "repository:a:pull")
    request = next(asking)
    with contextlib.suppress(StopIteration):
        asking.send(httpx.Response(200, content=data, request=request))


def answers(data: bytes) -> None:
    """Parse every other header that the client reads, and the bodies of errors."""
    answer = _answer(data)
    headers.length(answer)
    headers.uploaded_bytes(answer)
    read_quota(answer.headers)
    errors.retry_after_s(answer)
    assert "\n" not in str(errors.from_response("fuzz", answer))
    for read in (headers.location, headers.next_page, headers.digest_in):
        try:
            read(answer, "fuzz")
        except DistError:
            continue


def lists(data: bytes) -> None:
    """Parse lists of tags and repositories, and the URLs of descriptors."""
    for kind in (listing.TAGS, listing.REPOSITORIES):
        with contextlib.suppress(DistError):
            listing.read_page(data, kind, at="fuzz")
    assert foreign.parse(_text(data)).host


def secrets(data: bytes) -> None:
    """Resolve templates in configurations, without reading files."""
    text = _text(data)
    if "file" not in text:
        templates.resolve_secret(text, at="fuzz", environ={"A": "a"})


def mirrors(data: bytes) -> None:
    """Parse mirror configurations, in dist's and in skopeo's format, without reading other files."""
    if b"file" in data or b"list" in data or b"cert-dir" in data:
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(DistError):
            convert_skopeo(yamlfile.read(file.name), to=["registry.example"])
        load(file.name)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        reference,
        platform,
        manifests,
        referrer_lists,
        configs,
        challenges,
        tokens,
        answers,
        lists,
        secrets,
        mirrors,
    )
}


def _one_input(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        with contextlib.suppress(DistError):
            target(data)

    return run


def main() -> None:
    """Fuzz the target in the first argument, with the libFuzzer options in the next ones.

    Without arguments, fuzz every target for a share of a minute.
    """
    if len(sys.argv) > 1:
        atheris.Setup([sys.argv[0], *sys.argv[2:]], _one_input(TARGETS[sys.argv[1]]))
        atheris.Fuzz()
        return
    (_TOP / "build").mkdir(exist_ok=True)
    broken = []
    for name in TARGETS:
        options = [
            f"-max_total_time={_SECONDS // len(TARGETS)}",
            "-artifact_prefix=build/",
            "-verbosity=0",
            "-print_final_stats=1",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "fuzz.parsers", name, *options], cwd=_TOP, capture_output=True, check=False
        )
        output = done.stderr.decode(errors="replace")
        runs = next((line.split()[-1] for line in output.splitlines() if "number_of_executed_units" in line), "?")
        print(f"{name:<14} {runs:>10} inputs: {'broken' if done.returncode else 'sound'}", flush=True)
        if done.returncode:
            broken.append(name)
            print(output, file=sys.stderr)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
