"""The files of a divided run: what a process writes, another process reads, and damaged files are errors of one line."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from prefect_dist.mirror.entry import Entry
from prefect_dist.mirror.mirror_shard_files import MirrorShardInput, MirrorShardResult
from prefect_dist.mirror.plan import PlannedImage, SyncItem, TargetAction
from prefect_dist.mirror.results import GateVeto, MirrorResults
from prefect_dist.ocispec import Descriptor, Digest, Platform, Reference
from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput
from prefect_dist.ocispec.referrers import ReferrerFilter
from prefect_dist.remotes import Quota
from prefect_dist.transfer.gate import Gate
from prefect_dist.transfer.stats import TransferStats

AT = "store/runs/run-1/file.json"
ROOT = Descriptor(media_type="application/vnd.oci.image.index.v1+json", digest=Digest.of(b"root"), size=4)
SOURCE, TARGET, OTHER = (Reference.parse(f"registry.example/{name}:v1") for name in ("source", "target", "other"))
LAYOUT = Reference.parse("oci:/srv/a:b:")
ENTRY = Entry(
    at="mirror.yaml:1: sync[0]",
    source="",
    type="image",
    targets=(),
    platforms=(Platform.parse("linux/amd64"),),
    referrers=True,
    digest_tags=True,
    referrer_filters=frozenset({ReferrerFilter(artifact_type="application/x", annotations=frozenset({("a", "b")}))}),
    gate=Gate(command=("scan", "--all"), timeout_s=1.5),
)
ITEM = SyncItem(entry=ENTRY, source=SOURCE, targets=(TARGET, LAYOUT))
ACTIONS = (
    TargetAction(item=ITEM, target=TARGET, change="change", old=ROOT, new=ROOT, backup=OTHER),
    TargetAction(item=ITEM, target=LAYOUT, change="add", new=ROOT),
)
IMAGE = PlannedImage(item=ITEM, root=ROOT, content=(), sent=(), actions=ACTIONS)
RESULT = MirrorShardResult(
    results=MirrorResults(
        failures={TARGET: (Denied("no access", subject="registry.example", cause="denied"),)},
        vetoes={LAYOUT: GateVeto(gate="scan", reason="old")},
        referrers={TARGET: {ROOT.digest: "tag", Digest.of(b"other"): None}},
        begun=frozenset({TARGET}),
    ),
    stats=TransferStats(received=1, sent=2),
    tasks=3,
    quotas={"registry.example": Quota(limit=100, remaining=98, window_s=None)},
)


def test_the_input_of_a_shard_is_read_as_it_was_written() -> None:
    raw = MirrorShardInput(images=(IMAGE,)).to_json()
    found = MirrorShardInput.from_json(raw, at=AT)
    assert repr(found.images) == repr((IMAGE,))
    assert found.to_json() == raw


def test_the_result_of_a_shard_is_read_as_it_was_written() -> None:
    found = MirrorShardResult.from_json(RESULT.to_json(), targets=(TARGET, LAYOUT), at=AT)
    (error,) = found.results.failures[TARGET]
    assert (type(error), str(error), error.cause) == (Denied, "registry.example: no access", "denied")
    assert found.results.vetoes == RESULT.results.vetoes
    assert found.results.referrers == RESULT.results.referrers
    assert (found.results.begun, found.stats, found.tasks) == (RESULT.results.begun, RESULT.stats, RESULT.tasks)


@pytest.mark.parametrize("key", ["failures", "vetoes", "referrers", "begun"])
def test_a_result_for_a_target_of_another_shard_is_refused(key: str) -> None:
    empty = json.loads(MirrorShardResult(results=MirrorResults()).to_json())
    values: dict[str, Any] = {"failures": {str(OTHER): []}, "vetoes": {str(OTHER): {"gate": "a", "reason": "b"}}}
    values |= {"referrers": {str(OTHER): {}}, "begun": [str(OTHER)]}
    raw = json.dumps(empty | {key: values[key]}).encode()
    with pytest.raises(InvalidInput, match=r"expected only targets of the shard, got 'registry.example/other:v1'"):
        MirrorShardResult.from_json(raw, targets=(TARGET,), at=AT)


def damages(value: object) -> list[Callable[[], object]]:
    """Return functions that each replace one value inside `value`, at any depth, and return the whole document."""
    raw, places = json.dumps(value), list[tuple[str | int, ...]]()

    def visit(one: object, path: tuple[str | int, ...]) -> None:
        places.append(path)
        parts = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, part in parts:
            visit(part, (*path, key))

    def damage(path: tuple[str | int, ...], new: object) -> object:
        document = whole = json.loads(raw)
        if not path:
            return new
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = new
        return whole

    visit(json.loads(raw), ())
    wrong: list[Any] = [None, True, -1, 1e400, "", "\x1b[2J\n../..", [], [1], {}, {"": ""}, [[["x"]]]]
    return [lambda path=path, new=new: damage(path, new) for path in places for new in wrong]  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["input", "result"])
def test_a_damaged_file_is_an_error_of_one_line_that_names_the_file(kind: str) -> None:
    written = MirrorShardInput(images=(IMAGE,)).to_json() if kind == "input" else RESULT.to_json()
    messages = list[str]()
    for damage in damages(json.loads(written)):
        raw = json.dumps(damage()).replace("Infinity", "1e999").encode()
        try:
            if kind == "input":
                MirrorShardInput.from_json(raw, at=AT).to_json()
            else:
                MirrorShardResult.from_json(raw, targets=(TARGET, LAYOUT), at=AT).to_json()
        except DistError as exc:
            messages.append(str(exc))
    assert len(messages) > 100
    assert [message for message in messages if not message.isprintable()] == []
    for raw in (b"", b"{", b"\x00", written[:-10], b"[" * 100_000):
        with pytest.raises(InvalidInput):
            MirrorShardInput.from_json(raw, at=AT)
