"""Commands with locators of each remote as source and as target. Independent readers check the written images."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests import images
from tests.cli.dist import command, dist, dist_direct
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.peers import skopeo
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S
from tests.remotes.layouts import blob_file, write_layout

ONE, OTHER = images.image(810, layers=2), images.image(811, layers=2, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
BILL = images.artifact(812, subject=INDEX)
SOURCES = ["registry", "oci", "store"]
TARGETS = ["registry", "oci"]


@dataclass(frozen=True, kw_only=True)
class Places:
    """A registry with the image `app:v1`, an empty registry, and a directory for layouts and the content store."""

    source: FakeRegistry
    target: FakeRegistry
    directory: Path

    @property
    def store(self) -> tuple[str, str]:
        """The option for the content store."""
        return "--store", str(self.directory / "store")

    @property
    def app(self) -> str:
        """The name of the image in the registry."""
        return f"{self.source.host}/app:v1"

    def make_source(self, kind: str) -> str:
        """Return the locator of the image in a remote of this kind."""
        if kind == "registry":
            return self.app
        if kind == "store":
            assert dist_direct(*self.store, "fetch", "--referrers", self.app).code == 0
            return f"store:{self.app}"
        locator = f"{kind}:{self.directory / 'source'}:v1"
        made = dist_direct("--store", str(self.directory / "made"), "copy", "--referrers", self.app, locator)
        assert made.code == 0, made.err
        return locator

    def make_target(self, kind: str, tag: str = "v1") -> str:
        """Return the locator of a target in a remote of this kind."""
        place = f"{self.target.host}/copy" if kind == "registry" else f"{kind}:{self.directory / 'target'}"
        return f"{place}:{tag}"

    def find_missing(self, target: str) -> list[str]:
        """Return the content of the index that a target lacks, by a reader that is not ours."""
        if target.startswith(self.target.host):
            return find_missing(self.target, "copy", INDEX, target.rpartition(":")[2])
        layout, _, tag = target.removeprefix("oci:").rpartition(":")
        read = {path.name: path.read_bytes() for path in (Path(layout) / "blobs" / "sha256").iterdir()}
        content = {**INDEX.blobs, **{one.digest: one.raw for one in INDEX.manifests}}
        missing = [digest for digest, raw in content.items() if read.get(digest.partition(":")[2]) != raw]
        return missing if skopeo.raw(f"oci:{layout}:{tag}") == INDEX.manifests[-1].raw else [*missing, tag]


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    with FakeRegistry() as source, FakeRegistry() as target:
        images.load(source, "app", BILL)
        images.load(source, "app", INDEX, "v1")
        yield Places(source=source, target=target, directory=tmp_path)


@pytest.fixture
def run(places: Places) -> Callable[..., str]:
    """Runs `dist` without Prefect, expects success, and returns the output."""

    def run(*arguments: str, direct: bool = True) -> str:
        result = (dist_direct if direct else dist)(*places.store, *arguments)
        assert result.code == 0, result.err
        return result.out.decode()

    return run


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", TARGETS)
def test_copy(places: Places, run: Callable[..., str], source: str, target: str) -> None:
    place = places.make_target(target)
    run("copy", "--referrers", places.make_source(source), place)
    assert places.find_missing(place) == []
    assert "0 added, 0 changed, 1 unchanged" in run("copy", "--referrers", places.make_source(source), place)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", TARGETS)
def test_mirror_check_and_repair(places: Places, run: Callable[..., str], source: str, target: str) -> None:
    place, file = places.make_target(target), places.directory / "mirror.yaml"
    entry = {"source": places.make_source(source), "type": "image", "target": place, "referrers": True}
    file.write_text(json.dumps({"lock": str(places.directory / "lock.json"), "sync": [entry]}))

    assert "1 added" in run("mirror", str(file))
    assert places.find_missing(place) == []
    assert "0 added, 0 changed, 1 unchanged" in run("mirror", str(file))
    assert "1 ok" in run("check", str(file))
    lost = next(iter(INDEX.blobs))
    if target == "registry":
        places.target.lose("copy", lost)
    else:
        (places.directory / "target" / "blobs" / "sha256" / lost.partition(":")[2]).unlink()
    assert dist_direct(*places.store, "check", str(file)).code == 1
    assert "1 repaired" in run("check", "--repair", str(file))
    assert places.find_missing(place) == []


@pytest.mark.parametrize("target", TARGETS)
def test_push(places: Places, run: Callable[..., str], target: str) -> None:
    run("fetch", places.app)
    place = places.make_target(target)
    run("push", places.app, place)
    assert places.find_missing(place) == []


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", TARGETS)
def test_seed_from_a_list(places: Places, run: Callable[..., str], source: str, target: str) -> None:
    images.load(places.source, "base", ONE, "v2")
    image, repository = places.make_source(source), "source" if source == "oci" else "app"
    file = places.directory / "images.txt"
    file.write_text(f"{image}\n{places.source.host}/base:v2\n")
    to = f"{places.target.host}/seeded" if target == "registry" else f"{target}:{places.directory / 'seeded'}"
    planned = json.loads(run("--output", "json", "seed", "--dry-run", "--to", to, str(file)))
    assert [(row["source"], row["target"], row["outcome"]) for row in planned["targets"]] == [
        (image, f"{to}/{repository}:v1", "planned"),
        (f"{places.source.host}/base:v2", f"{to}/base:v2", "planned"),
    ]
    assert "2 added" in run("seed", "--referrers", "--to", to, str(file))
    if target == "registry":
        missing = find_missing(places.target, f"seeded/{repository}", INDEX, "v1")
        assert missing + find_missing(places.target, "seeded/base", ONE, "v2") == []
    else:
        assert skopeo.raw(f"{to}/{repository}:v1") == INDEX.manifests[-1].raw
        assert skopeo.raw(f"{to}/base:v2") == ONE.manifests[-1].raw
    assert "0 added, 0 changed, 2 unchanged" in run("seed", "--referrers", "--to", to, str(file))


def test_relative_paths_of_a_seed_start_at_the_list_the_configuration_or_the_command(
    places: Places, run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_layout(tmp_path / "lists" / "app", {"v1": ONE})
    write_layout(tmp_path / "lists" / "a#b" / "hash", {"v1": ONE})
    (tmp_path / "lists" / "images.txt").write_text("oci:app:v1 # the application\noci:a#b/hash:v1\n# the end\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "2 added" in run("seed", "../lists/images.txt", "--to", places.target.host)
    section = {"images": ["oci:lists/app:v1"], "list": "lists/images.txt", "to": f"{places.target.host}/again"}
    (tmp_path / "site.yaml").write_text(json.dumps({"seed": section}))
    assert "2 added" in run("seed", "../site.yaml")
    piped = dist_direct(*places.store, "seed", "-", "--to", f"{places.target.host}/piped", stdin=b"oci:../lists/app:v1\n")
    assert (piped.code, f"oci:{tmp_path}/lists/app:v1" in piped.lines[1]) == (0, True), piped.out
    for repository in ("app", "hash", "again/app", "again/hash", "piped/app"):
        assert find_missing(places.target, repository, ONE, "v1") == []


def test_failed_locators_are_a_list_for_the_next_seed(places: Places, tmp_path: Path) -> None:
    failed, to = tmp_path / "failed.txt", places.target.host
    (tmp_path / "images.txt").write_text("oci:absent:v1\n")
    first = dist_direct(*places.store, "seed", tmp_path / "images.txt", "--to", to, "--failed", failed)
    assert (first.code, failed.read_text()) == (1, f"oci:{tmp_path}/absent:v1\n"), first.err
    write_layout(tmp_path / "absent", {"v1": ONE})
    again = dist_direct(*places.store, "seed", failed, "--to", to, "--failed", failed)
    assert (again.code, failed.read_text()) == (0, ""), again.err
    assert find_missing(places.target, "absent", ONE, "v1") == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("oci:layout", "expected a source with a tag, as in oci:{here}/layout:latest"),
        (
            "oci:My_App:v1",
            "cannot derive a repository name from the source: 'My_App' is not valid (lower-case letters, digits, . _ -)",
        ),
        ("nothere://x/y", "images.txt:1: reference 'x/y': unknown scheme nothere://"),
    ],
)
def test_a_seed_names_the_image_without_a_name_at_the_target(places: Places, tmp_path: Path, image: str, message: str) -> None:
    (tmp_path / "images.txt").write_text(f"{image}\n")
    result = dist_direct(*places.store, "seed", tmp_path / "images.txt", "--to", places.target.host)
    assert (result.code != 0, message.format(here=tmp_path) in result.line) == (True, True), result.err


def test_a_seed_of_an_image_in_place_of_a_list_has_a_remedy(places: Places) -> None:
    result = dist_direct(*places.store, "seed", "oci:layout:v1", "--to", places.target.host)
    assert (result.code, result.line) == (
        2,
        "dist: oci:layout:v1: expected a list of images, got an image; use dist copy, or pass the image on standard input (-)",
    )


def test_a_prefect_run_seeds_a_layout_and_a_name(places: Places, run: Callable[..., str], prefect: PrefectServer) -> None:
    assert prefect.url
    file = places.directory / "images.txt"
    file.write_text(f"{places.make_source('oci')}\n{places.make_source('store')}\n")
    assert "2 added" in run("seed", "--to", f"{places.target.host}/seeded", str(file), direct=False)
    for repository in ("seeded/source", "seeded/app"):
        assert find_missing(places.target, repository, INDEX, "v1") == []


@pytest.mark.parametrize("source", SOURCES)
def test_resolve_fetch_object_fetch_and_pull(places: Places, run: Callable[..., str], source: str) -> None:
    name, digest = places.make_source(source), INDEX.root.digest
    assert digest in run("resolve", name, direct=False)
    assert run("fetch-object", name, direct=False).encode() == INDEX.manifests[-1].raw
    run("fetch", "--referrers", name)
    assert digest in run("names", places.app if source == "store" else name, direct=False)
    run("pull", "--platform", "linux/amd64", name, str(places.directory / "root"))
    assert any((places.directory / "root").iterdir())


@pytest.mark.parametrize("source", ["registry", "oci"])
def test_tags_and_all_tags(places: Places, run: Callable[..., str], source: str) -> None:
    repository = places.make_source(source).rpartition(":")[0]
    assert "v1" in run("tags", repository, direct=False).split()
    run("copy", "--all-tags", repository, f"oci:{places.directory / 'all'}")
    assert skopeo.raw(f"oci:{places.directory / 'all'}:v1") == INDEX.manifests[-1].raw


def test_a_prefect_run_copies_between_layouts(places: Places, run: Callable[..., str], prefect: PrefectServer) -> None:
    assert prefect.url
    source, target = places.make_source("oci"), places.make_target("oci")
    run("copy", source, target, direct=False)
    assert places.find_missing(target) == []


def test_a_read_only_target_fails_before_content_is_fetched(places: Places) -> None:
    result = dist_direct(*places.store, "copy", places.app, "oci:https://host.invalid/layout:v1")
    assert (result.code, "a layout on a web server is read-only" in result.err) == (2, True), result.err
    assert places.source.find_requests("GET", "/v2/app/blobs/.*") == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("resolve", "nothere://x/y"),
            2,
            "unknown scheme nothere://; expected a registry (no scheme, or docker://) or one of oci:",
        ),
        (
            ("resolve", "nothere:x/y"),
            2,
            "nothere: is not a known scheme; expected a registry (no scheme, or docker://) or one of",
        ),
        (("resolve", "oci:"), 2, "expected a location after oci:"),
        (("resolve", "oci:https://user:secret@host/x"), 2, "remove the user and password"),
        (("resolve", "oci:ftp://host/x"), 1, "ftp:// does not guarantee"),
        (("tags", "oci:layout:v1"), 2, "expected no tag or digest"),
        (("copy", "--direct", "oci:layout@sha256:" + "0" * 64, "oci:other"), 1, "/other:latest"),
    ],
)
def test_a_wrong_locator_has_one_clear_line(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dist("--store", tmp_path / "store", *arguments)
    assert (result.code, message in result.err, "secret" in result.err) == (code, True, False), result.err


@pytest.mark.parametrize("kind", ["registry", "oci", "oci-archive", "store"])
def test_a_copy_of_all_platforms_completes_an_earlier_copy_of_one_platform(tmp_path: Path, kind: str) -> None:
    one, other = images.image(890), images.image(891, platform="linux/arm64")
    source = write_layout(tmp_path / "source", {"v1": images.index([one, other])})
    with FakeRegistry(sparse=True) as registry:
        places = {"registry": f"{registry.host}/app:v1", "store": "store:app:v1"}
        target = places.get(kind, f"{kind}:{tmp_path / 'target'}:v1")
        run = partial(dist_direct, "--store", tmp_path / "store", "copy")
        first = run("--platform", "linux/amd64", f"oci:{source}:v1", target)
        assert first.code == 0, first.err
        again = run("--platform", "linux/amd64", f"oci:{source}:v1", target)
        assert "0 added, 0 changed, 1 unchanged" in again.lines[-2], again.out
        planned = run("--dry-run", "--output", "json", f"oci:{source}:v1", target).json["targets"]
        assert [(planned[0]["action"], planned[0]["note"])] == [("change", "to complete the index at the target")]
        second = run(f"oci:{source}:v1", target)
        assert "0 added, 1 changed, 0 unchanged" in second.lines[-2], second.out
        third = run(f"oci:{source}:v1", target)
        assert "0 added, 0 changed, 1 unchanged" in third.lines[-2], third.out
        store = tmp_path / ("store" if kind == "store" else "empty")
        back = dist_direct("--store", store, "copy", target, f"oci:{tmp_path / 'back'}:v1")
    assert back.code == 0, back.err
    for digest in (*one.blobs, *other.blobs, one.root.digest, other.root.digest):
        assert blob_file(tmp_path / "back", digest).exists()


def test_a_missing_store_name_fails_only_its_own_entry(places: Places) -> None:
    file, target = places.directory / "mirror.yaml", places.make_target("oci")
    entries = [
        {"source": "store:a/b:v1", "type": "image", "target": "oci:other:v1"},
        {"source": places.app, "type": "image", "target": target},
    ]
    file.write_text(json.dumps({"sync": entries}))

    result = dist_direct(*places.store, "mirror", str(file))

    assert result.code == 1
    assert "a/b:v1: the store has no image of this name" in result.err
    assert places.find_missing(target) == []


def test_relative_paths_have_the_same_meaning_with_workers(places: Places, migrated: Path, tmp_path: Path) -> None:
    """The layout is relative to the configuration, the file and the gate to the working directory of the command.

    Modules in the working directory do not replace modules of Python. The command starts its own Prefect server.
    """
    work, here = tmp_path / "work", tmp_path / "here"
    work.mkdir()
    here.mkdir()
    (here / "json.py").write_text("raise RuntimeError('the wrong module')")
    (here / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "1"\ndependencies = ["prefect"]\n')
    (here / "password").write_text("secret")
    (here / "gate").write_text("#!/bin/sh\nexit 0\n")
    (here / "gate").chmod(0o755)
    credentials = {"registry": "other.invalid", "user": "me", "pass": '{{file "password"}}'}
    entry = {
        "source": f"{places.source.host}/app",
        "type": "repository",
        "target": "oci:layout",
        "gate": {"command": ["./gate"]},
    }
    (work / "mirror.yaml").write_text(json.dumps({"creds": [credentials], "sync": [entry]}))

    (tmp_path / "prefect").mkdir()
    shutil.copy(migrated, tmp_path / "prefect" / "prefect.db")
    home = {"PREFECT_HOME": str(tmp_path / "prefect"), "DIST_SERVER_IDLE": "0"}
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"} | home
    argv = command(*places.store, "mirror", "--workers", "2", work / "mirror.yaml")
    argv.insert(1, "-P")
    done = subprocess.run(argv, cwd=here, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)

    assert done.returncode == 0, done.stderr
    assert skopeo.raw(f"oci:{work / 'layout'}:v1") == INDEX.manifests[-1].raw
