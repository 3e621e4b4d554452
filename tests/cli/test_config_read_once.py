"""A command and its run read the configuration, and the files in its templates, once."""

import json
import os
import threading
from pathlib import Path

from tests import images
from tests.cli.dist import dist
from tests.fakes.access import Basic
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.peers.prefect import PrefectServer

ONE = images.image(1300, layers=1)
INDEX = images.index([images.image(1301, layers=1), images.image(1302, platform="linux/arm64", layers=1)])
SECRET = "hunter2-secret"


def serve_once(path: Path, text: str) -> threading.Thread:
    """Make a file that has `text` for its first reader. A later reader gets text that is no YAML and no password."""
    os.mkfifo(path)

    def serve() -> None:
        with path.open("w") as pipe:  # waits for the reader
            later = path.with_name(f"{path.name}.later")
            later.write_text("]")
            later.rename(path)
            pipe.write(text)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    return server


def test_a_configuration_and_the_files_of_its_templates_are_read_once(prefect: PrefectServer, tmp_path: Path) -> None:
    assert prefect.url
    with FakeRegistry() as source, FakeRegistry(auth=Basic("me", SECRET)) as target:
        images.load(source, "app", ONE, "v1")
        entry = {"type": "image", "source": f"{source.host}/app:v1", "target": f"{target.host}/copy:v1"}
        seed = {"images": [f"{source.host}/app:v1"], "to": target.host}
        known = {target.host: {"user": "me", "pass": f'{{{{file "{tmp_path / "password"}"}}}}'}}
        text = json.dumps({"store": "store", "sync": [entry], "seed": seed, "registries": known})
        path, password = tmp_path / "mirror.yaml", tmp_path / "password"

        for command in ("mirror", "check", "seed"):
            path.unlink(missing_ok=True)
            password.unlink(missing_ok=True)
            servers = serve_once(path, text), serve_once(password, SECRET)
            done = dist(command, path)
            assert done.code == 0, done.err
            assert not any(server.is_alive() for server in servers)
        assert not find_missing(target, "copy", ONE, "v1")
        assert not find_missing(target, "app", ONE, "v1")


def test_the_list_of_a_seed_is_read_once_and_its_options_apply(prefect: PrefectServer, tmp_path: Path) -> None:
    assert prefect.url
    listed, lock = tmp_path / "images.txt", tmp_path / "lock.json"
    with FakeRegistry() as source, FakeRegistry() as target:
        images.load(source, "app", INDEX, "v1")
        server = serve_once(listed, f"{source.host}/app:v1\n")
        options = "--platform", "linux/amd64", "--rewrite-index", "--lock", lock
        done = dist("--store", tmp_path / "store", "seed", listed, "--to", target.host, *options)

        assert done.code == 0, done.err
        assert not server.is_alive()
    (locked,) = json.loads(lock.read_text())["images"].values()
    assert (locked["platforms"], locked["rewriteIndex"]) == (["linux/amd64"], True)
