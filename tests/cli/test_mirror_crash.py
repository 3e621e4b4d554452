"""Mirrors that are killed repeatedly, and two parallel mirrors: all content arrives, and almost no content is read twice."""

import json
import os
import random
import signal
import subprocess
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.cli.dist import command, dist, dist_direct
from tests.fakes.faults import Fault, Response, Wire
from tests.fakes.registry import FakeRegistry
from tests.flows.fleet import Fleet, build_fleet, signature_tag, sync_entries
from tests.flows.mirrors import find_faulty_files, find_missing
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S

_KILLS = 10
_READ_AT_MOST = 1.1


@dataclass(slots=True)
class Killer:
    """Kills a process group when registries have received the next number of requests in `at`, in the middle of an answer."""

    at: list[int]
    made: int = 0
    victim: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def watch(self, registry: FakeRegistry, method: str, path: str) -> None:
        registry.inject(Fault(method=method, path=path, nth=None, action=self))

    def apply(self, response: Response) -> Response:
        """Count an answer before it is sent."""
        with self._lock:
            self.made += 1
            if self.victim is None or self.made < self.at[0]:
                return response
            self.at.pop(0)
            victim, self.victim = self.victim, None
        return replace(response, interruption=Death(len(response.body) // 2, victim))


@dataclass(frozen=True, slots=True)
class Death:
    """An action that kills a process group after some bytes of a body."""

    after: int
    victim: subprocess.Popen[bytes]

    def interrupt(self, _wire: Wire) -> bool:
        os.killpg(self.victim.pid, signal.SIGKILL)
        return False


def config(directory: Path, sync: list[dict[str, Any]], **said: Any) -> Path:
    path = directory / "mirror.yaml"
    path.write_text(json.dumps({"store": "store", "sync": sync, **said}))
    return path


def incomplete(target: FakeRegistry, ships: Fleet) -> list[str]:
    """Return the content that a target lacks."""
    found = [key for (name, tag), built in ships.tagged.items() for key in find_missing(target, f"copy/{name}", built, tag)]
    for (name, subject), built in ships.signatures.items():
        found += find_missing(target, f"copy/{name}", built, signature_tag(subject))
    return found + [key for (name, _), built in ships.listed.items() for key in find_missing(target, f"copy/{name}", built)]


@pytest.mark.timeout(900)
def test_a_mirror_that_is_killed_ten_times_is_completed_by_the_next_run(prefect: PrefectServer, tmp_path: Path) -> None:
    assert prefect.url
    ships = build_fleet(base_bytes=200_000, layer_bytes=50_000)
    with FakeRegistry() as source, FakeRegistry() as target, FakeRegistry() as other:
        ships.put(lambda repository, built, tag: images.load(source, repository, built, tag), api=True)
        useful = len(ships.content) + 2 * (len(ships.blobs) + len(ships.manifests))
        killer = Killer(sorted(random.Random(5).sample(range(1, useful * 9 // 10), _KILLS)))
        killer.watch(source, "GET", ".*/(blobs|manifests)/.*")
        for place in (target, other):
            killer.watch(place, "PUT", ".*")
        path = config(tmp_path, sync_entries(source.host, target.host, other.host))

        for left in reversed(range(_KILLS)):
            # A direct run has the same store, lock file and targets, and no Prefect. The last killed run is a Prefect run.
            direct = ("--direct",) if left else ()
            victim = subprocess.Popen(
                command("mirror", path, *direct), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            killer.victim = victim
            assert victim.wait(PATIENCE_S) == -signal.SIGKILL
            assert len(killer.at) == left
        done = dist("--output", "json", "mirror", path)

        assert done.code == 0, done.err
        assert (done.json["status"], done.json["errors"]) == ("complete", [])
        assert incomplete(target, ships) + incomplete(other, ships) == []
        assert find_faulty_files(tmp_path / "store") == []
        read = sum(one.sent for one in source.requests if "/blobs/" in one.path or "/manifests/" in one.path)
        assert read <= _READ_AT_MOST * sum(map(len, ships.content.values()))
        locked = json.loads((tmp_path / "mirror.lock.json").read_text())["images"]
        assert len(locked) == 2 * len(ships.tagged)
        assert all(one["mirrored"] and one["own"] for one in locked.values())

        checked = dist_direct("--output", "json", "check", path)
        assert (checked.code, checked.json["counts"]["ok"], checked.json["targets"]) == (0, 400, [])
