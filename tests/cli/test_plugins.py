"""Commands with locators of the plug-in in examples/remote-plugin, and with broken plug-ins."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import images
from tests.cli.dist import Result, command, dist
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.peers import skopeo
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S, poll_until
from tests.plugins import REMOTE, write_plugin

EXAMPLE = Path(__file__).parents[2] / "examples" / "remote-plugin"
OLD, NEW = images.image(940, layers=2), images.image(941, layers=1)
NO_TAGS = "pin:app: the remote pin: cannot list tags"
NO_REFERRERS = "the remote pin: cannot list referrers"
READ_ONLY = "the remote pin: is read-only"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which pip has installed the example."""
    directory = tmp_path_factory.mktemp("plugin") / "site"
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(directory))
    argv = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *options, str(EXAMPLE)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory


@dataclass(frozen=True, kw_only=True)
class Pins:
    """The example with a pin `app` to the image OLD of a registry, whose tag has moved to NEW since."""

    site: Path
    source: FakeRegistry
    target: FakeRegistry
    directory: Path

    def run(self, *arguments: str, more: Path | None = None) -> Result:
        """Run a command with its own content store, and with the plug-ins of another directory."""
        path = str(self.site) if more is None else f"{self.site}{os.pathsep}{more}"
        store = str(self.directory / "store")
        return dist("--store", store, *arguments, PYTHONPATH=path, DIST_PINS=str(self.directory / "pins.toml"))

    def run_directly(self, *arguments: str) -> Result:
        """Run a command without Prefect."""
        return self.run(*arguments, "--direct")


@pytest.fixture
def pins(site: Path, tmp_path: Path) -> Iterator[Pins]:
    with FakeRegistry() as source, FakeRegistry() as target:
        images.load(source, "app", OLD)
        images.load(source, "app", NEW, "v1")
        text = f'[app]\ndigest = "{OLD.root.digest}"\nsource = "{source.host}/app:v1"\n'
        (tmp_path / "pins.toml").write_text(text)
        yield Pins(site=site, source=source, target=target, directory=tmp_path)


def test_the_tests_of_the_example_pass_in_its_own_installation(site: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "--basetemp", str(tmp_path / "pytest"), str(EXAMPLE)]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout.splitlines()[-1]


def test_single_commands_use_the_pinned_digest(pins: Pins) -> None:
    resolved = pins.run("--output", "json", "resolve", "pin:app")
    assert resolved.code == 0, resolved.err
    assert (resolved.json["name"], resolved.json["descriptor"]["digest"]) == ("pin:app", OLD.root.digest)
    assert pins.run("fetch-object", "pin:app").out == OLD.manifests[-1].raw
    assert pins.run("fetch-object", f"pin:app@{NEW.root.digest}").out == NEW.manifests[-1].raw
    assert not [one.path for one in pins.source.requests if one.path.endswith("/v1")], "the tag counts nothing"


@pytest.mark.parametrize("way", ["run", "run_directly"])
def test_fetch_copy_and_mirror_use_the_pinned_digest(pins: Pins, way: str, prefect: PrefectServer) -> None:
    assert prefect.url
    run: Callable[..., Result] = getattr(pins, way)
    fetched = run("fetch", "pin:app")
    assert fetched.code == 0, fetched.err
    assert [line.split()[0] for line in pins.run("names").lines[1:]] == ["pin:app"]
    copied = run("copy", "pin:app", f"{pins.target.host}/copy:v7")
    assert copied.code == 0, copied.err
    assert find_missing(pins.target, "copy", OLD, "v7") == []
    config = pins.directory / "mirror.yaml"
    config.write_text(f"name: pinned\nsync:\n- type: image\n  source: pin:app\n  target: {pins.target.host}/mirrored:v7\n")
    mirrored = run("mirror", str(config))
    assert mirrored.code == 0, mirrored.err
    assert find_missing(pins.target, "mirrored", OLD, "v7") == []


def test_a_seed_takes_the_pinned_digest(pins: Pins) -> None:
    listed = pins.directory / "images.txt"
    listed.write_text("pin:app\n")
    layout = pins.directory / "seeded"
    result = pins.run_directly("seed", str(listed), "--to", f"{pins.target.host}/hub", "--to", f"oci:{layout}")
    assert (result.code, "2 added" in result.lines[-2]) == (0, True), result.err
    assert find_missing(pins.target, "hub/app", OLD, "latest") == []
    assert skopeo.raw(f"oci:{layout}/app:latest") == OLD.manifests[-1].raw


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("tags", "pin:app"), NO_TAGS),
        (("catalog", "pin:app"), "pin:app: the remote pin: cannot list repositories"),
        (("copy", "--direct", "--all-tags", "pin:app", "{target}/copy"), NO_TAGS),
        (("copy", "--direct", "--referrers", "pin:app", "{target}/copy:v1"), NO_REFERRERS),
        (("fetch", "--direct", "--referrers", "pin:app"), NO_REFERRERS),
        (("copy", "--direct", "{source}/app:v1", "pin:app"), READ_ONLY),
    ],
)
def test_a_missing_ability_is_one_line_that_names_the_remote(pins: Pins, arguments: tuple[str, ...], expected: str) -> None:
    result = pins.run(*(one.format(target=pins.target.host, source=pins.source.host) for one in arguments))
    assert result.code == 1, (result.out, result.err)
    assert [line for line in result.err.splitlines() if line.endswith(expected)], result.err
    assert "pin:app" in result.err
    assert pins.target.find_requests("PUT", ".*/manifests/.*") == []
    assert "Traceback" not in result.err


@pytest.mark.parametrize("way", ["run", "run_directly"])
def test_a_mirror_reports_the_missing_ability_of_each_entry_and_mirrors_the_others(
    pins: Pins, way: str, prefect: PrefectServer
) -> None:
    assert prefect.url
    config = pins.directory / "mirror.yaml"
    config.write_text(f"""
name: abilities
sync:
- {{type: repository, source: "pin:app", target: {pins.target.host}/all}}
- {{type: image, source: "pin:app", target: {pins.target.host}/related:v1, referrers: true}}
- {{type: image, source: {pins.source.host}/app:v1, target: "pin:app"}}
- {{type: image, source: {pins.source.host}/app:v1, target: {pins.target.host}/good:v1}}
""")
    result: Result = getattr(pins, way)("mirror", str(config))
    assert result.code == 1, result.err
    for expected in (NO_TAGS, NO_REFERRERS, READ_ONLY):
        assert [line for line in result.err.splitlines() if line.endswith(expected)], result.err
    assert find_missing(pins.target, "good", NEW, "v1") == []
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import missing_module", "cannot be loaded: ModuleNotFoundError"),
        ("raise SystemExit(0)", "cannot be loaded: SystemExit: 0"),
        ("def make(context): return 1", "expected a prefect_dist.remotes.Remote, got int"),
        (
            "from prefect_dist.remotes import Remote\nclass R(Remote):\n  open_source = lambda *_: 1 / 0\nmake = lambda _: R()",
            "open_source failed: ZeroDivisionError: division by zero",
        ),
    ],
)
def test_a_broken_plugin_is_one_line_and_other_commands_do_not_import_it(
    pins: Pins, tmp_path: Path, code: str, expected: str
) -> None:
    marker = tmp_path / "imported"
    write_plugin(
        tmp_path / "broken", f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n{code}", points="bad = broken:make"
    )
    app, more = f"{pins.source.host}/app:v1", tmp_path / "broken"
    for arguments in (("resolve", app), ("resolve", "pin:app"), ("tags", app.removesuffix(":v1")), ("fetch", "--direct", app)):
        good = pins.run(*arguments, more=more)
        assert (good.code, "broken" in good.err) == (0, False), good.err
    assert not marker.exists()

    bad = pins.run("resolve", "bad:x", more=more)
    assert (bad.code, bad.out) == (1, b"")
    assert bad.line.startswith("dist: plug-in broken:make (dist-broken 1.2) for the scheme bad: ")
    assert expected in bad.line
    fetched = pins.run("--output", "json", "fetch", "--direct", "bad:x", "pin:app", more=more)
    assert fetched.code == 1
    assert [json.dumps(error) for error in fetched.json["errors"] if expected in json.dumps(error)]
    assert {image["name"]: image["outcome"] for image in fetched.json["images"]} == {"bad:x": "failed", "pin:app": "fetched"}
    assert "Traceback" not in fetched.err
    assert marker.exists()


ASKING = """
from prefect_dist.ocispec.errors import Denied
from prefect_dist.remotes import Remote


class Asking(Remote):
    def __init__(self, context):
        self.context = context

    def open_source(self, reference):
        found = self.context.find_credentials(reference.locator)
        raise Denied(f"the user is {found and found.username}", subject=reference)
"""


def test_a_plugin_gets_the_credentials_of_its_locator_from_the_environment_and_the_configuration(tmp_path: Path) -> None:
    write_plugin(tmp_path / "site", ASKING, points="ask = asking:Asking")
    docker, config, path = tmp_path / "docker", tmp_path / "mirror.yaml", str(tmp_path / "site")
    docker.mkdir()
    (docker / "config.json").write_text('{"credsStore": "missing"}')  # asking this helper would fail
    config.write_text("""
name: asking
registries:
  "ask:one": {user: configured, pass: secret}
sync:
- {type: image, source: "ask:one", target: "127.0.0.1:1/x:v1"}
- {type: image, source: "ask:two", target: "127.0.0.1:1/y:v1"}
""")
    store = ("--store", str(tmp_path / "store"))
    given = dist(*store, "resolve", "ask:one", PYTHONPATH=path, DIST_USERNAME="me", DIST_PASSWORD="secret")
    assert (given.code, given.line) == (1, "dist: ask:one: the user is me")
    none = dist(*store, "resolve", "ask:one", PYTHONPATH=path, DOCKER_CONFIG=str(docker))
    assert none.line == "dist: ask:one: the user is None"
    mirrored = dist(*store, "mirror", "--direct", config, PYTHONPATH=path, DOCKER_CONFIG=str(docker))
    assert mirrored.code == 1
    for expected in ("the user is configured", "the user is None"):
        assert [line for line in mirrored.err.splitlines() if line.endswith(expected)], mirrored.err
    assert "secret" not in mirrored.err


HANGING = """
import pathlib
import threading

class Waiting(OneImage):
    def fetch(self, descriptor, *, offset=0):
        pathlib.Path("fetching").touch()
        assert go.wait(60)
        raise ConnectionError("closed")
        yield b""

go = threading.Event()
OneImageRemote.source = Waiting
OneImageRemote.abort = lambda self: go.set()
"""


@pytest.mark.parametrize("arguments", [("fetch", "--direct"), ("fetch-object",)], ids=lambda found: found[0])
def test_a_signal_ends_a_command_while_a_plugin_hangs(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    write_plugin(tmp_path / "site", REMOTE + HANGING, points="hang = hanging:make")
    argv = command("--store", str(tmp_path / "store"), *arguments, "hang:x")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    with subprocess.Popen(argv, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert poll_until((tmp_path / "fetching").exists)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == 143, err
    assert b"Traceback" not in err
    assert b"plug-in" not in err
