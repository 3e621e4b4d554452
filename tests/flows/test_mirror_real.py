"""Mirrors of 200 images between CNCF registries. The logs of the registries count requests, and skopeo compares the bytes."""

import http.client
import json
import subprocess
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from tests import images
from tests.cli.dist import command
from tests.flows.fleet import REPOSITORIES, Fleet, build_fleet, signature_tag, sync_entries
from tests.flows.mirrors import Mirrors, find_faulty_files
from tests.flows.reports import error_lines
from tests.peers import skopeo
from tests.peers.processes import PATIENCE_S
from tests.peers.registry import LOGIN, CncfRegistry, Request, cncf_registry

_ACCEPT = f"{images.OCI_INDEX}, {images.OCI_MANIFEST}"
_LOGIN = b64encode(":".join(LOGIN).encode()).decode()

pytestmark = pytest.mark.xdist_group("mirror_real")  # the tests share a registry with 200 images


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return build_fleet()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, fleet: Fleet) -> Iterator[CncfRegistry]:
    with cncf_registry(tmp_path_factory.mktemp("source")) as source:
        fleet.put(lambda repository, built, tag: images.push(source.host, repository, built, tag), api=False)
        yield source


@dataclass(frozen=True, slots=True)
class RegistryReader:
    """Reads manifests and sizes of blobs from a registry."""

    connection: http.client.HTTPConnection

    def manifest(self, repository: str, key: str) -> bytes:
        return self._request("GET", f"/v2/{repository}/manifests/{key}")[1]

    def size(self, repository: str, blob: str) -> int | None:
        headers, _ = self._request("HEAD", f"/v2/{repository}/blobs/{blob}")
        return int(headers["Content-Length"]) if "Docker-Content-Digest" in headers else None

    def _request(self, method: str, path: str) -> tuple[http.client.HTTPMessage, bytes]:
        self.connection.request(method, path, headers={"Accept": _ACCEPT, "Authorization": f"Basic {_LOGIN}"})
        answer = self.connection.getresponse()
        return answer.headers, answer.read()


def list_differences(host: str, fleet: Fleet) -> list[str]:
    """Return the content that is different or missing at a target."""
    with closing(http.client.HTTPConnection(host, timeout=30)) as connection:
        return list(find_differences(RegistryReader(connection), fleet))


def find_differences(reader: RegistryReader, fleet: Fleet) -> Iterator[str]:
    keys: dict[tuple[str, str], bytes] = dict(fleet.manifests)
    keys |= {place: built.manifests[-1].raw for place, built in fleet.tagged.items()}
    keys |= {(name, signature_tag(of)): built.manifests[-1].raw for (name, of), built in fleet.signatures.items()}
    yield from (f"{name} {key}" for (name, key), raw in keys.items() if reader.manifest(f"copy/{name}", key) != raw)
    blobs = {(name, digest): len(data) for name, built in fleet.parts() for digest, data in built.blobs.items()}
    yield from (f"{name} {key}" for (name, key), size in blobs.items() if reader.size(f"copy/{name}", key) != size)


def count_blob_reads(requests: list[Request]) -> Counter[str]:
    found = (one.path.rpartition("/")[2] for one in requests if one.method == "GET" and one.status == 200)
    return Counter(key for key in found if key.startswith("sha256:"))


def count_uploads(requests: list[Request]) -> Counter[str]:
    uploads = (one for one in requests if one.method == "PUT" and "/blobs/uploads/" in one.path and one.status == 201)
    return Counter(parse_qs(one.query)["digest"][0] for one in uploads)


def assert_each_digest_is_read_once(requests: list[Request], fleet: Fleet) -> None:
    """Check that each digest was requested once. The manifest of a tag may be requested by the tag instead."""
    reads = count_blob_reads(requests)
    tagged = {built.root.digest for built in (*fleet.tagged.values(), *fleet.signatures.values())}
    assert set(reads) | tagged == fleet.content.keys() | tagged
    assert set(reads.values()) == {1}


def test_200_images_are_mirrored_unchanged_and_each_digest_is_transferred_once(
    mirrors: Mirrors, source: CncfRegistry, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(fleet.tagged) == 200
    before = len(source.requests())
    with cncf_registry(tmp_path / "open") as target, cncf_registry(tmp_path / "closed", basic_auth=True) as closed:
        wanted = sync_entries(source.host, target.host, closed.host)
        logins = {closed.host: {"user": LOGIN[0], "pass": LOGIN[1]}}

        report = mirrors.run(*wanted, registries=logins, retries=3)

        assert report.status == "complete", error_lines(report)
        assert report.counts["added"] == 400
        assert_each_digest_is_read_once(source.requests()[before:], fleet)
        assert report.counts["fetched_bytes"] == sum(map(len, fleet.content.values()))
        for place in (target, closed):
            requests = place.requests()
            assert count_uploads(requests) == Counter(fleet.blobs.keys())
            puts = [one.path for one in requests if one.method == "PUT" and "/manifests/" in one.path and one.status == 201]
            assert not [path for path, times in Counter(puts).items() if times > 1 and ":" in path]
            assert list_differences(place.host, fleet) == []
        login = tmp_path / "auth.json"
        login.write_text(json.dumps({"auths": {closed.host: {"auth": _LOGIN}}}))
        with monkeypatch.context() as patch:
            patch.setenv("REGISTRY_AUTH_FILE", str(login))
            assert_skopeo_reads_equal_bytes(source.host, f"{target.host}/copy", f"{closed.host}/copy", fleet=fleet)

        seen = len(target.requests())
        again = mirrors.run(*wanted, registries=logins)
        assert (again.status, again.counts["unchanged"]) == ("complete", 400)
        assert {one.method for one in target.requests()[seen:]} == {"HEAD"}


def assert_skopeo_reads_equal_bytes(*places: str, fleet: Fleet) -> None:
    name = REPOSITORIES[7]
    for tag in ("1.0", "2.0", "2.1", "chart", signature_tag(fleet.tagged[name, "2.0"].root.digest)):
        assert len({skopeo.raw(f"docker://{place}/{name}:{tag}") for place in places}) == 1


def test_two_concurrent_mirrors_of_overlapping_images_fetch_each_digest_once(
    source: CncfRegistry, fleet: Fleet, tmp_path: Path
) -> None:
    before = len(source.requests())
    with cncf_registry(tmp_path / "target") as target:
        processes = []
        for name, teams in (("one", (0, 1, 3)), ("two", (1, 2, 3))):
            settings = {"store": "store", "lock": "lock.json", "sync": sync_entries(source.host, target.host, teams=teams)}
            (tmp_path / f"{name}.yaml").write_text(json.dumps(settings))
            arguments = command("--output", "json", "mirror", tmp_path / f"{name}.yaml", "--direct")
            processes.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        outputs = [process.communicate(timeout=PATIENCE_S) for process in processes]

        assert [process.returncode for process in processes] == [0, 0], [err.decode() for _, err in outputs]
        assert [len(json.loads(out)["targets"]) for out, _ in outputs] == [150, 150]
        assert list_differences(target.host, fleet) == []
        assert_each_digest_is_read_once(source.requests()[before:], fleet)
        assert find_faulty_files(tmp_path / "store") == []
        locked = json.loads((tmp_path / "lock.json").read_text())["images"]
        assert len(locked) == 200
        assert all(one["mirrored"] for one in locked.values())
