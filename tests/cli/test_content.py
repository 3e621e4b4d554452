"""The commands resolve, tags, catalog, fetch-object, ls, active and get, and the modules that commands import."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_dist.cli.app import app
from prefect_dist.ocispec import Digest
from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import command, dist
from tests.fakes.access import Basic
from tests.fakes.faults import Answer, Fault, Flip, Redirect
from tests.fakes.registry import FakeRegistry
from tests.peers import skopeo
from tests.peers.registry import CncfRegistry
from tests.storage.conformance import ingest

HELLO = b"hello world"
DIGEST = Digest.of(HELLO)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    content = open_store(str(path))
    with content.writer("hello", expected=DIGEST) as writer:
        writer.write(HELLO)
        writer.commit()
    return path


def test_ls_lists_blobs_newest_first(store: Path) -> None:
    text = dist("--store", store, "ls").out.decode().splitlines()
    assert [line.split()[:3] for line in text] == [["DIGEST", "SIZE", "AGE"], [str(DIGEST), "11", "B"]]
    assert dist("--store", store, "ls", "-q").out.decode() == f"{DIGEST}\n"
    (blob,) = dist("--store", store, "--output", "json", "ls").json
    assert (blob["digest"], blob["size"]) == (str(DIGEST), 11)


def test_ls_of_a_missing_store_is_empty_and_creates_no_store(tmp_path: Path) -> None:
    result = dist("--store", tmp_path / "none", "ls", "-q")

    assert (result.code, result.out) == (0, b"")
    assert not (tmp_path / "none").exists()


def test_ls_with_prefixes(store: Path) -> None:
    other = ingest(open_store(str(store)), b"other")

    assert dist("--store", store, "ls", "-q", DIGEST.hex[:5]).lines == [str(DIGEST)]
    assert dist("--store", store, "ls", "-q", f"sha256:{other.hex[:5]}").lines == [str(other)]
    assert dist("--store", store, "ls", "-q", str(DIGEST), other.hex).lines == [str(other), str(DIGEST)]
    assert dist("--store", store, "list", "-q", "sha512:").lines == []


def test_active_lists_ingests(store: Path) -> None:
    content = open_store(str(store))
    with content.writer("unknown") as writer:
        writer.write(b"part")
    with content.writer("known", total=2048, expected=Digest.of(b"")) as writer:
        writer.write(bytes(1024))

    text = dist("--store", store, "active").lines
    known, unknown = dist("--store", store, "--output", "json", "active").json

    assert [line.split("  ")[0] for line in text] == ["KEY", "known", "unknown"]
    assert [line.split()[1:4] for line in text[1:]] == [["1.0", "KiB", "2.0"], ["4", "B", "-"]]
    assert dist("--store", store, "active", "-q").lines == ["known", "unknown"]
    assert (known["key"], known["offset"], known["total"], known["expected"]) == ("known", 1024, 2048, str(Digest.of(b"")))
    assert (unknown["offset"], unknown["total"], unknown["expected"]) == (4, None, None)
    assert unknown["started"] <= unknown["updated"]


def test_get_writes_a_blob(store: Path) -> None:
    assert dist("--store", store, "get", str(DIGEST)).out == HELLO


def test_get_of_a_missing_blob_fails(store: Path) -> None:
    missing = Digest.of(b"")

    result = dist("--store", store, "get", str(missing))

    assert (result.code, result.out, result.line) == (1, b"", f"dist: blob {missing}: not found")


def test_get_of_a_corrupt_blob_fails(store: Path) -> None:
    blob = store / "blobs" / "sha256" / DIGEST.hex
    blob.chmod(0o644)
    blob.write_bytes(b"hello w0rld")

    result = dist("--store", store, "get", str(DIGEST))

    assert result.code == 1
    assert f"the stored bytes have the digest {Digest.of(b'hello w0rld')}" in result.line


def test_a_reader_that_closes_the_pipe_causes_no_error_line(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    data = os.urandom(5_000_000)
    with store.writer("big", expected=Digest.of(data)) as writer:
        writer.write(data)
        writer.commit()

    with subprocess.Popen(
        command("--store", tmp_path, "get", str(Digest.of(data))), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""


def test_resolve_prints_the_descriptor(registry: CncfRegistry) -> None:
    image = images.image(500)
    images.push(registry.host, "cli/resolve", image, "v1")
    name = f"{registry.host}/cli/resolve:v1"

    assert dist("resolve", name).out.decode().splitlines()[1].split() == [
        name,
        image.root.digest,
        image.root.media_type,
        str(image.root.size),
    ]
    assert dist("--output", "json", "resolve", name).json == {
        "name": name,
        "descriptor": {"mediaType": image.root.media_type, "digest": image.root.digest, "size": image.root.size},
    }


def test_tags_lists_and_filters_tags(registry: CncfRegistry) -> None:
    repository = f"{registry.host}/cli/tags"
    for tag in ("v1", "v1.1", "v2", "latest"):
        images.push(registry.host, "cli/tags", images.image(500), tag)

    assert dist("tags", repository).lines == skopeo.tags(f"docker://{repository}")
    assert set(dist("tags", repository, "--filter", "v1.*").lines) == {"v1", "v1.1"}
    assert dist("--output", "json", "tags", repository, "--filter", "v").json == {"name": repository, "tags": []}
    unknown = dist("tags", f"{registry.host}/cli/unknown")
    assert (unknown.code, unknown.out) == (1, b"")
    assert f"tags of {registry.host}/cli/unknown: not found" in unknown.line


def test_tags_are_printed_before_the_last_page_arrives() -> None:
    with FakeRegistry(page_entries=1) as registry:
        for tag in ("v1", "v2", "v3"):
            images.load(registry, "app", images.image(500), tag)
        registry.inject(Fault(nth=3, action=Answer(500)))

        result = dist("tags", f"{registry.host}/app")

    assert (result.code, result.lines) == (1, ["v1", "v2"])
    assert "the registry failed" in result.line


def test_catalog_lists_and_filters_repositories(registry: CncfRegistry) -> None:
    for name in ("cli/catalog/a", "cli/catalog/b"):
        images.push(registry.host, name, images.image(500), "v1")
    ours = ("--filter", "cli/catalog/.*")

    assert dist("catalog", registry.host, *ours).lines == ["cli/catalog/a", "cli/catalog/b"]
    assert {"cli/catalog/a", "cli/catalog/b"} <= set(dist("catalog", registry.host).lines)
    expected = {"registry": registry.host, "repositories": ["cli/catalog/a", "cli/catalog/b"]}
    assert dist("--output", "json", "catalog", registry.host, *ours).json == expected


def test_a_registry_without_a_catalog_fails_with_a_remedy() -> None:
    with FakeRegistry() as registry:
        registry.inject(Fault(path="/v2/_catalog", action=Answer(404)))

        result = dist("catalog", registry.host)

    assert (result.code, result.out) == (1, b"")
    assert f"repositories of {registry.host}: not found" in result.line
    assert "name the repositories instead" in result.line


def test_catalog_uses_credentials() -> None:
    with FakeRegistry(auth=Basic("me", "secret")) as registry:
        images.load(registry, "app", images.image(500), "v1")

        result = dist("catalog", registry.host, DIST_USERNAME="me", DIST_PASSWORD="secret")

    assert (result.code, result.lines) == (0, ["app"])


def test_every_form_of_fetch_object(registry: CncfRegistry) -> None:
    index = images.index([images.image(510), images.image(511, platform="linux/arm64")])
    images.push(registry.host, "cli/object", index, "v1")
    locator = f"{registry.host}/cli/object"
    layer, content = list(index.blobs.items())[-1]
    _, media_type, raw = index.manifests[0]

    assert dist("fetch-object", f"{locator}:v1").out == index.manifests[-1].raw
    assert dist("fetch-object", locator, "v1").out == index.manifests[-1].raw
    assert dist("fetch-object", locator, "v1", f"mediatype:{index.root.media_type}").out == index.manifests[-1].raw
    assert dist("fetch-object", f"{locator}@{index.root.digest}").out == index.manifests[-1].raw
    assert dist("fetch-object", locator, index.manifests[0].digest, f"mediatype:{media_type}").out == raw
    assert dist("fetch-object", locator, layer).out == content


def test_hints_save_requests() -> None:
    with FakeRegistry() as registry:
        layer = registry.put_blob("app", HELLO)

        result = dist("fetch-object", f"{registry.host}/app", layer, f"mediatype:{images.OCI_LAYER}", f"size:{len(HELLO)}")

        assert result.out == HELLO
        assert [(r.method, r.path) for r in registry.requests] == [("GET", f"/v2/app/blobs/{layer}")]


def test_a_redirect_to_a_metadata_service_fails_and_names_the_setting() -> None:
    with FakeRegistry() as registry:
        layer = registry.put_blob("app", HELLO)
        registry.inject(
            Fault(path=".*/blobs/.*", nth=None, action=Redirect("http://169.254.169.254/latest/user-data?k=secret"))
        )

        result = dist("--connect-timeout", "5", "fetch-object", f"{registry.host}/app", layer)

    assert (result.code, result.out) == (1, b"")
    reason = f"169.254.169.254 is a link-local address; to allow it, add 169.254.169.254 to privateHosts of {registry.host}"
    assert reason in result.line
    assert "secret" not in result.line


def test_fetch_object_fails_for_wrong_bytes() -> None:
    with FakeRegistry() as registry:
        layer = registry.put_blob("app", HELLO)
        registry.inject(Fault(path=".*/blobs/.*", action=Flip(3)))

        result = dist("fetch-object", f"{registry.host}/app", layer)

    assert result.code == 1
    assert f"expected {layer}, got sha256:{hashlib.sha256(result.out).hexdigest()}" in result.line


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("ls",),
        ("active",),
        ("names",),
        ("names", "--check"),
        ("ingest", "key"),
    ],
)
def test_commands_on_the_store_import_neither_prefect_nor_http(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert not {"prefect", "httpx", "urllib3"} & imported(arguments, tmp_path)


def test_help_of_a_command_imports_only_that_command_and_no_slow_package() -> None:
    script = (
        "import json, sys\n"
        "from prefect_dist.cli.app import app\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    app.meta(arguments, result_action='return_value', exit_on_error=False)\n"
        "    print(json.dumps(list(sys.modules)), file=sys.stderr)\n"
    )
    commands = [name for name in app if not name.startswith("-")]
    arguments = [["--help"], ["fetch", "--help"], *([name, "--help"] for name in commands)]

    done = subprocess.run([sys.executable, "-c", script, json.dumps(arguments)], capture_output=True, check=True)

    overview, fetch, *_, every = [set(json.loads(line)) for line in done.stderr.splitlines()]
    modules = {"prefect_dist.cli." + name for name in ("fetch", "mirror", "push", "remote", "content", "archive", "config")}
    assert not modules & overview
    assert modules & fetch == {"prefect_dist.cli.fetch"}
    assert modules <= every
    assert not {"prefect", "httpx", "urllib3", "pydantic", "fsspec", "yaml"} & every


def test_commands_on_a_registry_do_not_import_prefect(tmp_path: Path) -> None:
    with FakeRegistry() as registry:
        images.load(registry, "app", images.image(500), "v1")
        assert "prefect" not in imported(("tags", f"{registry.host}/app"), tmp_path)
        assert "prefect" not in imported(("catalog", registry.host), tmp_path)
        assert "prefect" not in imported(("resolve", f"{registry.host}/app:v1"), tmp_path)
        assert len(registry.requests) == 3


def imported(arguments: tuple[str, ...], store: Path) -> set[str]:
    """Return the top-level names of all modules that a command imports."""
    open_store(str(store)).prepare()
    script = (
        "import atexit, json, sys\n"
        "from prefect_dist.cli.main import main\n"
        "atexit.register(lambda: print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})), file=sys.stderr))\n"
        f"sys.argv = ['dist', *{list(arguments)}]\n"
        "main()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        input=b"",
        capture_output=True,
        check=True,
        env=os.environ | {"DIST_STORE": str(store)},
    )

    return set(json.loads(done.stderr.splitlines()[-1]))
