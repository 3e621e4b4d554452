"""Tests of references: containerd's test vectors, refused texts, and parsing as the inverse of formatting."""

import copy
import pickle

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from prefect_dist.ocispec import Digest, Reference
from prefect_dist.ocispec.errors import InvalidInput, Unsupported
from prefect_dist.ocispec.reference import expand, is_registry, is_repository, make_absolute
from tests.ocispec.samples import DIGEST

# from containerd's reference package: text, locator, object, host, digest, formatted text
VECTORS = {
    "Basic": (
        "docker.io/library/redis:foo?fooo=asdf",
        ("docker.io/library/redis", "foo", "docker.io", None, "docker.io/library/redis:foo"),
    ),
    "BasicWithDigest": (
        "docker.io/library/redis:foo@sha256:abcdef?fooo=asdf",
        (
            "docker.io/library/redis",
            "foo@sha256:abcdef",
            "docker.io",
            "sha256:abcdef",
            "docker.io/library/redis:foo@sha256:abcdef",
        ),
    ),
    "DigestOnly": (
        "docker.io/library/redis@sha256:abcdef?fooo=asdf",
        ("docker.io/library/redis", "@sha256:abcdef", "docker.io", "sha256:abcdef", "docker.io/library/redis@sha256:abcdef"),
    ),
    "AtShortDigest": (
        "docker.io/library/redis:obj@abcdef?fooo=asdf",
        ("docker.io/library/redis", "obj@abcdef", "docker.io", "abcdef", "docker.io/library/redis:obj@abcdef"),
    ),
    "HostWithPort": (
        "localhost:5000/library/redis:obj@abcdef?fooo=asdf",
        ("localhost:5000/library/redis", "obj@abcdef", "localhost:5000", "abcdef", "localhost:5000/library/redis:obj@abcdef"),
    ),
    "ErrObjectRequired": (
        "docker.io/library/redis?fooo=asdf",
        ("docker.io/library/redis", "", "docker.io", None, "docker.io/library/redis"),
    ),
    "Subdomain": (
        "sub-dom1.foo.com/bar/baz/quux:latest",
        ("sub-dom1.foo.com/bar/baz/quux", "latest", "sub-dom1.foo.com", None, "sub-dom1.foo.com/bar/baz/quux:latest"),
    ),
    "SubdomainWithLongTag": (
        "sub-dom1.foo.com/bar/baz/quux:some-long-tag",
        (
            "sub-dom1.foo.com/bar/baz/quux",
            "some-long-tag",
            "sub-dom1.foo.com",
            None,
            "sub-dom1.foo.com/bar/baz/quux:some-long-tag",
        ),
    ),
    "AGCRAppears": (
        "b.gcr.io/test.example.com/my-app:test.example.com",
        (
            "b.gcr.io/test.example.com/my-app",
            "test.example.com",
            "b.gcr.io",
            None,
            "b.gcr.io/test.example.com/my-app:test.example.com",
        ),
    ),
    "Punycode": (
        "xn--n3h.com/myimage:xn--n3h.com",
        ("xn--n3h.com/myimage", "xn--n3h.com", "xn--n3h.com", None, "xn--n3h.com/myimage:xn--n3h.com"),
    ),
    "PunycodeWithDigest": (
        "xn--7o8h.com/myimage:xn--7o8h.com@sha512:fffffff",
        (
            "xn--7o8h.com/myimage",
            "xn--7o8h.com@sha512:fffffff",
            "xn--7o8h.com",
            "sha512:fffffff",
            "xn--7o8h.com/myimage:xn--7o8h.com@sha512:fffffff",
        ),
    ),
}

ACCEPTED = [
    ("[::1]:5000/x", "[::1]:5000", "x", None, None),
    ("[2001:db8::1]/a/b:t", "[2001:db8::1]", "a/b", "t", None),
    ("127.0.0.1:65535/x", "127.0.0.1:65535", "x", None, None),
    ("Registry.Example.COM/x:T", "Registry.Example.COM", "x", "T", None),
    ("h/a.b_c__d---e/f:_", "h", "a.b_c__d---e/f", "_", None),
    ("h/x:" + "t" * 128, "h", "x", "t" * 128, None),
    ("h/x@" + DIGEST, "h", "x", None, DIGEST),
    ("h/x:t@" + DIGEST, "h", "x", "t", DIGEST),
    ("h/x#fragment?query", "h", "x", None, None),
    ("h/x:t?from=http://a:b@c/d", "h", "x", "t", None),
    ("h/" + "x" * 253, "h", "x" * 253, None, None),
]

REFUSED = [
    # host
    ("", "printable"),
    ("/docker.io/library/redis:obj@abcdef?fooo=asdf", "this is a path; write oci:PATH for an image layout"),
    ("?", "hostname required"),
    ("redis", "expected host/path, such as docker.io/library/redis"),
    ("-h/x", "bad host"),
    ("h-/x", "bad host"),
    ("h_h/x", "bad host 'h_h'"),
    ("a..b/x", "bad host"),
    ("[]/x", "bad host"),
    ("[::1/x", "bad host"),
    ("[::1]x/y", "bad host"),
    ("[::1%25eth0]/x", "bad host"),
    # port
    ("h:/x", "bad port"),
    ("h:0/x", "bad port"),
    ("h:65536/x", "bad port"),
    ("h:-1/x", "bad port"),
    ("h:+1/x", "bad port"),
    ("h:5o/x", "bad port"),
    ("h:5000:5000/x", "bad port"),
    ("h:" + "1" * 5000 + "/x", "bad port"),
    # scheme
    ("http://xn--7o8h.com/myimage:xn--7o8h.com@sha512:fffffff", "leave out the scheme http://"),
    ("HTTPS://h/x", "leave out the scheme HTTPS://"),
    ("oci+v1.x-y://h/x", "unknown scheme oci+v1.x-y://; expected a registry (no scheme, or docker://) or one of oci:, "),
    ("oci:", "expected a location after oci:"),
    ("store:", "expected a name (dist names lists the names in the store) after store:"),
    ("oci:s3://key:hunter2@bucket/x", "remove the user and password"),
    ("oci:simplecache::s3://key:hunter2@bucket/x:v1", "remove the user and password"),
    ("oci:zip://a::https://host/b?token=hunter2:v1", "remove the query"),
    ("oci:https://h/x?X-Amz-Signature=hunter2", "remove the query"),
    ("oci:/srv/a\nb", "printable"),
    (
        "nothere:tag/x",
        "bad port, expected 1 to 65535; nothere: is not a known scheme; expected a registry (no scheme, or docker://)",
    ),
    # path: traversal, escapes, case, empty components
    ("h/", "bad path ''"),
    ("h/..", "bad path"),
    ("h/../x", "bad path"),
    ("h/a/../../x", "bad path"),
    ("h/./x", "bad path"),
    ("h/a//b", "bad path"),
    ("h//a", "bad path"),
    ("h/a/", "bad path"),
    ("h/%2e%2e/x", "bad path"),
    ("h/a%2fb", "bad path"),
    ("h/A", "bad path"),
    ("h/a\\b", "bad path"),
    ("h/_a", "bad path"),
    ("h/a-", "bad path"),
    ("h/a...b", "bad path"),
    ("h/a___b", "bad path"),
    ("h/?q", "bad path"),
    ("h/" + "x" * 254, "longer than 255"),
    # tag and digest
    ("h/x:", "bad tag"),
    ("h/x:@" + DIGEST, "bad tag"),
    ("h/x:.t", "bad tag"),
    ("h/x:-t", "bad tag"),
    ("h/x:a/b", "bad tag"),
    ("h/x:a:b", "bad tag"),
    ("h/x:a%20b", "bad tag"),
    ("h/x:../y", "bad tag"),
    ("h/x:" + "t" * 129, "bad tag"),
    ("h/x@", "bad digest ''"),
    ("h/x:t@", "bad digest"),
    ("h/x@a@b", "bad digest"),
    ("h/x@sha256:", "bad digest"),
    ("h/x@:abc", "bad digest"),
    ("h/x@sha256:../../etc", "bad digest"),
    ("h/x@sha256:a%2f", "bad digest"),
    # characters
    (" h/x", "printable"),
    ("h/x ", "printable"),
    ("h/x\n", "printable"),
    ("h/x:t\r\nHost: evil", "printable"),
    ("h/x\x00", "printable"),
    ("h/x\x1b[31m", "printable"),
    ("h/x\x7f", "printable"),
    ("h/é", "printable"),
    ("h:²/x", "printable"),
    ("h:٣/x", "printable"),
]

WITH_PASSWORD = [
    "user:hunter2@host/path",
    "user:hunter2@host:5000/path:tag@sha256:abcdef",
    "user:hunter2@/path",
    "user:hunter2@host",
    "hunter2@host/path",
    "user:a@hunter2@host/path",
    "us_er:hunter2/@host/path",
    "user:hunter2/@host/path",
    "user:/hunter2@host/path",
    "user:hunter2 x@host/path",
    "user:é hunter2@host/path",
    "/user:hunter2@host/path",
    "//user:hunter2@host/path",
    "https:/user:hunter2@host/path",
    "https://user:hunter2@host/path",
    "https://hunter2@host/path",
    "user:hunter2@host/path?next=http://x",
]

EXPANDED = [
    ("redis", "docker.io/library/redis:latest"),
    ("redis:7", "docker.io/library/redis:7"),
    ("redis@sha256:abc", "docker.io/library/redis@sha256:abc"),
    ("redis:7@sha256:abc", "docker.io/library/redis:7@sha256:abc"),
    ("library/redis", "docker.io/library/redis:latest"),
    ("bitnami/redis:7", "docker.io/bitnami/redis:7"),
    ("docker.io/redis", "docker.io/library/redis:latest"),
    ("docker.io/bitnami/redis", "docker.io/bitnami/redis:latest"),
    ("index.docker.io/redis:7", "docker.io/library/redis:7"),
    ("index.docker.io/a/b", "docker.io/a/b:latest"),
    ("localhost/x", "localhost/x:latest"),
    ("localhost:5000/x", "localhost:5000/x:latest"),
    ("localhost", "docker.io/library/localhost:latest"),
    ("registry:5000/x", "registry:5000/x:latest"),
    ("[::1]/x", "[::1]/x:latest"),
    ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
    ("ghcr.io/a", "ghcr.io/a:latest"),
    ("ghcr.io/a@sha256:abc", "ghcr.io/a@sha256:abc"),
    ("a.b", "docker.io/library/a.b:latest"),
    ("redis?q=a/b", "docker.io/library/redis:latest"),
    ("ghcr.io/a/b#f", "ghcr.io/a/b:latest"),
]


@st.composite
def references(draw: st.DrawFn) -> Reference:
    name = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,5}[A-Za-z0-9])?(\.[a-z0-9]{1,5}){0,2}", fullmatch=True)
    # Python 3.13 writes some addresses with dots, which references do not allow.
    address = st.ip_addresses(v=6).map(str).filter(lambda text: "." not in text)
    host = draw(name | address.map("[{}]".format))
    port = draw(st.just("") | st.integers(1, 65535).map(":{}".format))
    component = st.from_regex(r"[a-z0-9]{1,5}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
    path = "/".join(draw(st.lists(component, min_size=1, max_size=4)))
    tag = draw(st.just("") | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True))
    digest = draw(st.just("") | st.from_regex(r"@(sha(256|512):)?[a-f0-9]{1,64}", fullmatch=True))
    return Reference(f"{host}{port}/{path}", tag + digest)


@pytest.mark.parametrize(("text", "expected"), VECTORS.values(), ids=VECTORS)
def test_the_vectors_of_containerd(text: str, expected: tuple[str | None, ...]) -> None:
    reference = Reference.parse(text)
    assert (reference.locator, reference.object, reference.host, reference.digest, str(reference)) == expected


@pytest.mark.parametrize(("text", "host", "repository", "tag", "digest"), ACCEPTED)
def test_the_parts_of_a_reference(text: str, host: str, repository: str, tag: str | None, digest: str | None) -> None:
    reference = Reference.parse(text)
    assert (reference.host, reference.repository, reference.tag, reference.digest) == (host, repository, tag, digest)


@pytest.mark.parametrize(("text", "says"), REFUSED)
def test_a_bad_reference_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=r"^reference ") as refusal:
        Reference.parse(text)
    assert says in str(refusal.value)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("text", WITH_PASSWORD)
def test_no_message_shows_a_password(text: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Reference.parse(text)
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__cause__ is refusal.value.__context__ is None


# text, scheme, place, object
SCHEMED = [
    ("oci:/srv/layout:v1", "oci", "/srv/layout", "v1"),
    ("oci:/srv/layout", "oci", "/srv/layout", ""),
    ("oci:layout:v1", "oci", "layout", "v1"),
    ("oci:/srv/a:b:", "oci", "/srv/a:b", ""),
    (f"oci:/srv/a:b:@{DIGEST}", "oci", "/srv/a:b", f"@{DIGEST}"),
    (f"oci:/srv/layout@{DIGEST}", "oci", "/srv/layout", f"@{DIGEST}"),
    (f"oci:/srv/layout:v1@{DIGEST}", "oci", "/srv/layout", f"v1@{DIGEST}"),
    ("oci:/srv/user@host", "oci", "/srv/user@host", ""),
    ("oci:/mnt/usb stick/layout:v1", "oci", "/mnt/usb stick/layout", "v1"),
    ("oci:C:\\layouts\\app:v1", "oci", "C:\\layouts\\app", "v1"),
    ("oci:C:\\layouts\\app", "oci", "C:\\layouts\\app", ""),
    ("oci:s3://bucket/layout:v1", "oci", "s3://bucket/layout", "v1"),
    ("oci:s3://bucket/layout", "oci", "s3://bucket/layout", ""),
    ("oci:https://host:8443/layout", "oci", "https://host:8443/layout", ""),
    ("oci:https://host:8443/layout:v1", "oci", "https://host:8443/layout", "v1"),
    ("oci:./5000/layout", "oci", "./5000/layout", ""),
    ("oci-archive:app.tar:v1", "oci-archive", "app.tar", "v1"),
    ("docker-archive:/srv/app.tar", "docker-archive", "/srv/app.tar", ""),
    ("store:docker.io/library/redis:7", "store", "docker.io/library/redis", "7"),
    ("store:Release 7", "store", "Release 7", ""),
    ("store:odd:", "store", "odd:", ""),
]


@pytest.mark.parametrize(("text", "scheme", "place", "named"), SCHEMED)
def test_a_reference_with_a_scheme_names_a_place_and_an_image(text: str, scheme: str, place: str, named: str) -> None:
    reference = Reference.parse(text)
    assert (reference.scheme, reference.place, reference.object) == (scheme, place, named)
    assert (reference.host, reference.repository) == (f"{scheme}:{place}", "")
    assert str(reference) == text
    assert expand(text) == text
    assert str(reference.without_object().with_tag("x")) == f"{scheme}:{place}:x"


@given(st.sampled_from(["oci", "oci-archive", "docker-archive", "store"]), st.text("ab:@/. \\", min_size=1, max_size=12))
def test_a_reference_with_a_scheme_keeps_its_meaning_as_text(scheme: str, place: str) -> None:
    try:
        reference = Reference.parse(f"{scheme}:{place}")
    except InvalidInput:
        return
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize("text", ["oci:5000/app", "oci-archive:443/app", "localhost:5000/app"])
def test_a_port_after_the_first_colon_makes_a_registry(text: str) -> None:
    assert (Reference.parse(text).scheme, Reference.parse(text).repository) == ("", "app")


@pytest.mark.parametrize("host", ["docker.io", "localhost:5000", "registry:5000", "oci:5000", "[::1]:5000", "127.0.0.1:5000"])
def test_a_host_with_a_port_has_no_scheme(host: str) -> None:
    assert is_registry(host)
    assert is_registry(Reference.parse(f"{host}/app:v1").host)


@pytest.mark.parametrize("text", ["oci:/srv/layout:v1", "oci:s3://bucket/layout", "oci-archive:app.tar", "store:app:v1"])
def test_a_locator_with_a_scheme_is_no_registry(text: str) -> None:
    assert not is_registry(Reference.parse(text).host)


def test_the_scheme_docker_names_a_registry() -> None:
    assert Reference.parse("docker://ghcr.io/org/app:v1") == Reference("ghcr.io/org/app", "v1")
    assert expand("docker://redis:7") == "docker.io/library/redis:7"


@given(references())
def test_parsing_and_formatting_are_inverses(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference
    assert str(Reference.parse(f"{reference}?query#fragment")) == str(reference)


@given(st.text() | st.text("aA0_-.:/@?#%[]~ \n", max_size=20))
@example("a/" + "-" * 100_000)
@example("a/" + "a-" * 100_000)
@example("a-" * 100_000 + "/a")
def test_any_text_is_a_safe_reference_or_invalid_input(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidInput:
        return
    assert Reference.parse(str(reference)) == reference
    assert text.startswith(str(reference))
    assert not {"", ".", ".."} & set(reference.repository.split("/"))
    assert not set("%?#~ \n") & set(str(reference))


@given(references())
def test_the_repository_of_a_reference_is_a_valid_repository(reference: Reference) -> None:
    assert is_repository(reference.repository)


@pytest.mark.parametrize("text", ["", "/", "a/", "/a", "a//b", "..", "a/../b", "A", "a:b", "a@b", "a?b", "a b", "é", "a" * 256])
def test_invalid_repository_names(text: str) -> None:
    assert not is_repository(text)


def test_the_pinned_digest() -> None:
    assert Reference.parse(f"h/x:t@{DIGEST}").pinned_digest() == Digest.parse(DIGEST)
    assert Reference.parse("h/x:t").pinned_digest() is None


@pytest.mark.parametrize(
    ("text", "error"), [("h/x@abcdef", InvalidInput), ("h/x@sha256:abcdef", InvalidInput), ("h/x:t@md5:abcdef", Unsupported)]
)
def test_a_reference_without_a_complete_digest_is_not_pinned(text: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^reference {text}: digest "):
        Reference.parse(text).pinned_digest()


def test_references_can_be_hashed_pickled_and_copied() -> None:
    reference = Reference.parse("h/x:t")
    assert {reference} == {Reference("h/x", "t")} == {pickle.loads(pickle.dumps(reference))} == {copy.copy(reference)}  # noqa: S301
    assert reference != Reference.parse("h/x")


@pytest.mark.parametrize(("text", "expanded"), EXPANDED)
def test_short_names_are_expanded_as_docker_does(text: str, expanded: str) -> None:
    assert expand(text) == expanded
    assert str(Reference.parse(expanded)) == expanded


@pytest.mark.parametrize("text", ["", "/", ":", "@", "redis:", "redis@", "docker.io/", "http://h/x", "a/../b", "Redis"])
def test_expanding_an_invalid_name_does_not_make_it_valid(text: str) -> None:
    with pytest.raises(InvalidInput):
        Reference.parse(expand(text))


@pytest.mark.parametrize("text", [text for text in WITH_PASSWORD if text != "user:hunter2@host"])  # parsed as name:tag@digest
def test_no_message_shows_a_password_after_expansion(text: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Reference.parse(expand(text))
    assert "hunter2" not in str(refusal.value)


@given(references())
def test_expansion_only_adds_a_tag_to_a_reference_with_a_host(reference: Reference) -> None:
    assume(any(mark in reference.host for mark in ".:"))
    expanded = expand(str(reference))
    assert Reference.parse(expanded) == Reference(reference.locator, reference.object or "latest")
    assert expand(expanded) == expanded


@given(st.text("aA0_-.:/@?#%[] ", max_size=20))
def test_any_text_expands_to_a_tagged_reference_or_invalid_input(text: str) -> None:
    try:
        reference = Reference.parse(expand(text))
    except InvalidInput:
        return
    assert reference.tag or reference.digest


@pytest.mark.parametrize(
    ("text", "absolute"),
    [
        ("oci:lay:v1", "oci:/a/base/lay:v1"),
        ("oci:./lay", "oci:/a/base/lay"),
        ("oci:../lay", "oci:/a/lay"),
        ("oci:../../../lay", "oci:/lay"),
        ("oci:./../lay", "oci:/a/lay"),
        ("oci:..", "oci:/a"),
        ("oci:..:7", "oci:/a:7"),
        ("oci:../:7", "oci:/a:7"),
        ("oci:..@sha256:abc", "oci:/a@sha256:abc"),
        ("oci:../..:7", "oci:/:7"),
        ("oci:..:{{.Ref.Tag}}", "oci:/a/:{{.Ref.Tag}}"),
        ("oci:...:7", "oci:/a/base/...:7"),
        ("oci:..x:7", "oci:/a/base/..x:7"),
        ("oci:.", "oci:/a/base"),
        ("oci:.:7", "oci:/a/base:7"),
        ("oci:.//x", "oci:/a/base/x"),
        ("oci:lay/../x", "oci:/a/base/lay/../x"),
        ("oci:a:b/", "oci:/a/base/a:b:"),
        ("oci:./~root/x", "oci:/a/base/~root/x"),
        ("oci:./~/x", "oci:/a/base/~/x"),
        ("oci:~:7", "oci:/home/me:7"),
        ("oci-archive:a b.tar:app:v1", "oci-archive:/a/base/a b.tar:app:v1"),
        ("docker-archive:a.tar", "docker-archive:/a/base/a.tar"),
        ("oci:~/lay:v1", "oci:/home/me/lay:v1"),
        ("oci:/srv/lay:v1", "oci:/srv/lay:v1"),
        ("oci:s3://bucket/lay", "oci:s3://bucket/lay"),
        ("oci:./a//b/./lay/", "oci:/a/base/a/b/lay"),
        ("oci:file:///srv/lay", "oci:/srv/lay"),
        ("oci:", "oci:"),
        ("store:app:v1", "store:app:v1"),
        ("redis:7", "redis:7"),
        ("ghcr.io/org/app:v1", "ghcr.io/org/app:v1"),
        ("oci:5000/app", "oci:5000/app"),
    ],
)
def test_only_relative_paths_become_absolute(text: str, absolute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert make_absolute(text, "/a/base") == absolute


@pytest.mark.parametrize(
    ("text", "absolute"),
    [
        ("oci:lay:v1", "oci:s3://bucket/mirrors/lay:v1"),
        ("oci:./lay", "oci:s3://bucket/mirrors/lay"),
        ("oci:../lay", "oci:s3://bucket/lay"),
        ("oci:../../lay", "oci:s3://bucket/lay"),
        ("oci:..:7", "oci:s3://bucket:7"),
        ("oci:/srv/lay", "oci:/srv/lay"),
        ("oci:gs://other/lay", "oci:gs://other/lay"),
        ("redis:7", "redis:7"),
    ],
)
def test_a_relative_path_may_start_at_a_url(text: str, absolute: str) -> None:
    assert make_absolute(text, "s3://bucket/mirrors") == absolute


@pytest.mark.parametrize(
    ("text", "locator"),
    [
        ("oci:/a/b:v1", "oci:/a/b"),
        ("oci:/a/./b:v1", "oci:/a/b"),
        ("oci:/a/b/:v1", "oci:/a/b"),
        ("oci:/a//b/.:v1", "oci:/a/b"),
        ("oci://a/b:v1", None),
        ("oci:file:///a/b:v1", "oci:/a/b"),
        ("oci-archive:file:///a/./b.tar:v1", "oci-archive:/a/b.tar"),
        ("oci:s3://bucket/b/:v1", "oci:s3://bucket/b"),
        ("oci:s3://bucket/a//b:v1", "oci:s3://bucket/a//b"),
        ("oci:/:v1", "oci:/"),
        ("oci:/a/../b:v1", "oci:/a/../b"),
        ("oci:./5000/app:v1", "oci:./5000/app"),
        ("store:/a/./b:v1", "store:/a/./b"),
    ],
)
def test_a_place_has_one_spelling(text: str, locator: str | None) -> None:
    if locator is None:
        with pytest.raises(InvalidInput):
            Reference.parse(text)
        return
    assert Reference.parse(text) == Reference(locator, "v1")
    assert Reference.parse(f"{locator}:v1") == Reference(locator, "v1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dir:/srv/x", "dir: is a directory of skopeo, with one image; copy the image with skopeo copy dir:… oci:DIR:TAG"),
        ("dir:x", "dir: is a directory of skopeo"),
        ("docker-daemon:redis:7", "docker-daemon: is an image of a Docker daemon; save the image with docker save -o FILE"),
        (
            "containers-storage:docker.io/library/redis:7",
            "podman save --format oci-archive -o FILE, and write oci-archive:FILE",
        ),
        ("containers-storage:[overlay@/var/lib/x]redis:7", "podman save --format oci-archive -o FILE"),
        ("sif:x.sif", "sif: is a file of Singularity; copy the image with skopeo copy sif:… oci:DIR:TAG"),
        ("ocidir:///srv/lay:v1", "write oci:/srv/lay:v1"),
        ("ocidir://lay", "write oci:lay"),
        ("../x", "this is a path; write oci:../x for an image layout, or oci-archive:../x or docker-archive:../x"),
        ("./x.tar:7", "write oci:./x.tar:7"),
        ("/x", "write oci:/x"),
        ("~/x", "write oci:~/x"),
        ("OCI:x", "schemes are lower-case; write oci:x"),
        ("Oci-Archive:/x.tar", "schemes are lower-case; write oci-archive:/x.tar"),
        ("DOCKER://ghcr.io/a/b", "schemes are lower-case; write docker://ghcr.io/a/b"),
        ("s3://bucket/x", "this is a URL; write oci:s3://… for an image layout"),
    ],
)
def test_the_form_of_another_program_has_the_locator_to_write(text: str, message: str) -> None:
    for form in (text, expand(text)):
        with pytest.raises(InvalidInput) as refusal:
            Reference.parse(form)
        assert message in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["dir:5000/x", "sif:5000/x", "OCI:5000/x", "docker.io/library/dir:x", "dir/x"])
def test_a_registry_or_repository_may_have_the_name_of_a_transport(text: str) -> None:
    assert Reference.parse(expand(text)).scheme == ""


@pytest.mark.parametrize(
    "text",
    ["s3://user:hunter2@bucket/x", "s3://bucket/x?signature=hunter2", "ocidir://x?hunter2", "/x:hunter2@y", "OCI:hunter2@x"],
)
def test_advice_shows_no_secret(text: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Reference.parse(expand(text))
    assert "hunter2" not in str(refusal.value)
