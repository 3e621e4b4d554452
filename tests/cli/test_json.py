"""The keys of `--output json` are the keys in docs/reference/json.md."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.cli.app import app
from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import dist
from tests.cli.json_keys import Keys, find_objects, read_documented_keys
from tests.fakes.faults import Answer, Fault, WithHeaders
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer

IMAGE, OTHER = images.image(960, layers=2), images.image(961, layers=2)
ARTIFACT = images.artifact(962, subject=IMAGE)
QUOTA = (("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "99"))
MIRROR = "sync: [{source: HOST/app, target: HOST/copy, type: repository, tags: {allow: [TAGS]}, prune: {after: 0s}}]"
BYTES = {"get", "fetch-object"}  # these commands write content
ALIASES = {"list", "rmi"}


def run_server_commands(run: Callable[..., None]) -> None:
    """Run the commands for the local server. With PREFECT_API_URL, there would be no local server to open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL")
        for action in ("status", "start", "open", "stop"):
            run("server", action, as_=f"server {action}")


def run_init(run: Callable[..., None], scratch: Path) -> None:
    run("init", scratch / "project")
    (skopeo := scratch / "skopeo.yaml").write_text("quay.io: {images: {a/b: []}}")
    run("init", "--from", "skopeo", skopeo, "--to", "registry.example", as_="init --from")


@pytest.fixture(scope="module")
def written(prefect: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Any]]]:
    """The JSON documents of each command, with as many keys as possible."""
    assert prefect.url
    scratch = tmp_path_factory.mktemp("json")
    found: dict[str, list[Any]] = defaultdict(list)

    def run(*arguments: str | Path, as_: str = "", code: int = 0, stdin: bytes = b"", store: str = "store") -> None:
        result = dist("--store", scratch / store, "--output", "json", *arguments, stdin=stdin)
        assert result.code == code, result.err
        found[as_ or str(arguments[0])].append(json.loads(result.out))

    with FakeRegistry() as registry:
        for image, tag in ((IMAGE, "v1"), (OTHER, "v2"), (ARTIFACT, None)):
            images.load(registry, "app", image, tag)
        registry.inject(Fault(method="HEAD", nth=None, action=WithHeaders(QUOTA)))
        registry.inject(Fault(method="PUT", path="/v2/denied/.*", nth=None, action=Answer(403)))
        name, other, host = f"{registry.host}/app:v1", f"{registry.host}/app:v2", registry.host
        layer, config = list(OTHER.blobs)[-1], scratch / "mirror.yaml"

        run_init(run, scratch)
        run_server_commands(run)
        run("resolve", name)
        run("tags", f"{host}/app")
        run("catalog", host)
        run("fetch", "--referrers", "--retries", "0", name, f"{host}/app:none", code=1)
        run("pull", "--platform", "linux/amd64", other, scratch / "root")
        run("pull", "--platform", "linux/amd64", f"{host}/app:none", scratch / "none", code=1)
        for command in ("push", "copy"):
            run(command, name, f"{host}/{command}:v1")
            run(command, name, f"{host}/denied/{command}:v1", code=1)
        for tags in ("v1, v2", "v1"):
            config.write_text(MIRROR.replace("HOST", host).replace("TAGS", tags))
            run("mirror", config)
        full = scratch / "full.yaml"
        registries = f"registries: {{{host}: {{reqPerSec: 1000}}}}"
        full.write_text(f"{registries}\nseed: {{images: [a], to: {host}/b}}\n{config.read_text()}")
        run("config", full)
        run("seed", "-", "--to", f"{host}/seeded", "--offline", stdin=f"{name}\n{host}/app:none\n".encode(), code=1)
        registry.lose("copy", next(iter(IMAGE.blobs)))
        run("check", config, code=1)
        run("push-object", f"{host}/one", layer)
        run("ls")
        run("ingest", "key", stdin=b"unneeded")
        with open_store(str(scratch / "store")).writer("left") as writer:
            writer.write(b"part")
        run("active")
        run("names")
        run("unpack", other, scratch / "again")
        run("export", name, scratch / "app.tar")
        run("import", scratch / "app.tar", store="another")
        run("edit", OTHER.root.digest, "--editor", "true")
        run("gc", "--grace", "0", "--dry-run")
        run("delete", "--force", layer)
        run("names", "--check", as_="names --check", code=1)
        run("verify", code=1)
        run("rm", name)
        yield found


def test_every_command_is_in_the_table() -> None:
    named = {command.partition(" ")[0] for command, _ in read_documented_keys()[0]}
    assert named | BYTES | ALIASES == {name for name in app if not name.startswith("-")}


def test_the_json_of_each_command_has_the_documented_keys(written: dict[str, list[Any]]) -> None:
    seen: Keys = {}
    for command, document in [(command, document) for command, documents in written.items() for document in documents]:
        for place, keys in find_objects(document):
            assert seen.setdefault((command, place), keys) == keys, (command, place)
    table, shared = read_documented_keys()
    assert {one: found for one, found in seen.items() if found != table.get(one)} == {}
    places = {place for _, place in seen}
    unseen = table.keys() - seen.keys()
    assert unseen <= {(command, place) for command, place in shared if place in places}
