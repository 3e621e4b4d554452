"""The records of a lock file, without a run: which tags are extra, and how a run changes the records."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from prefect_dist.mirror.bookkeeping import record_intent, record_results
from prefect_dist.mirror.config import Mirror, parse_mirror
from prefect_dist.mirror.lock import Locked, Records
from prefect_dist.mirror.orphans import find_orphans
from prefect_dist.mirror.plan import Plan, PlannedImage, SyncItem, TargetAction
from prefect_dist.mirror.plan_cost import CostCounter
from prefect_dist.mirror.render.plans import plan_summary
from prefect_dist.mirror.results import GateVeto, MirrorResults, plan_rows
from prefect_dist.mirror.yamlfile import Document
from prefect_dist.ocispec import Descriptor, Digest, Reference, mediatypes
from prefect_dist.ocispec.errors import DistError, Unavailable
from prefect_dist.ocispec.referrers import cosign_tags
from prefect_dist.remotes import Quota

OLD = datetime.now(UTC) - timedelta(days=9)
IMAGE, OTHER, FIRST, SECOND, LISTED = (Digest.parse(f"sha256:{digit * 64}") for digit in "12345")
SIG = cosign_tags(IMAGE)[0]
V1, V2, SIGNATURE = (Reference.parse(f"target.example/copy:{tag}") for tag in ("v1", "v2", SIG))


def mirror(**said: Any) -> Mirror:
    entry = {"source": "source.example/app", "target": "target.example/copy", "type": "repository"}
    document = {"sync": [{**entry, "prune": {"after": "0s"}, **said}]}
    return parse_mirror(Document(path="mirror.yaml", data=document, lines={}))


REFERRERS = mirror(referrers=True, tags={"allow": ["v.*"]})


def record(target: Reference, digest: Digest, **said: Any) -> Locked:
    return replace(Locked(source=f"source.example/app:{target.tag}", digest=digest, mirrored=OLD, own=True), **said)


def image(target: Reference = V1, **said: Any) -> PlannedImage:
    root = Descriptor(media_type=mediatypes.OCI_MANIFEST, digest=IMAGE, size=5)
    item = SyncItem(entry=REFERRERS.entries[0], source=Reference.parse(f"source.example/app:{target.tag}"), targets=(target,))
    action = TargetAction(**{"item": item, "target": target, "change": "change", "old": root, "new": root, **said})
    return PlannedImage(item=item, root=root, content=(root,), sent=(root,), actions=(action,))


def after_run(records: Records, *images: PlannedImage, results: MirrorResults) -> Records:
    """Return the records after a run that no other run overlaps."""
    plan = Plan(images=images)
    return record_results(plan, results, records, record_intent(plan, records))


def fail(text: str) -> dict[Reference, tuple[DistError, ...]]:
    return {V1: (Unavailable(text),)}


def pushed(*targets: Reference, referrers: Mapping[Digest, str | None]) -> MirrorResults:
    return MirrorResults(referrers=dict.fromkeys(targets, referrers))


def test_a_digest_tag_that_a_wanted_image_has_as_a_referrer_is_not_extra() -> None:
    tag = record(SIGNATURE, FIRST, unwanted=OLD)

    kept = find_orphans([image()], (), REFERRERS.entries, {V1: record(V1, IMAGE, referrers={FIRST: SIG}), SIGNATURE: tag}).tags
    trusted = find_orphans([], [V1], REFERRERS.entries, {V1: record(V1, IMAGE, referrers={FIRST: SIG}), SIGNATURE: tag}).tags
    with_its_image = find_orphans(
        [], [V2], REFERRERS.entries, {V1: record(V1, IMAGE, referrers={FIRST: SIG}), SIGNATURE: tag}
    ).tags

    assert (kept, trusted) == ((), ())
    assert {orphan.target for orphan in with_its_image} == {V1, SIGNATURE}


def test_a_digest_tag_of_a_wanted_image_is_not_extra_before_its_record_lists_it() -> None:
    records = {V1: record(V1, IMAGE), SIGNATURE: record(SIGNATURE, FIRST, unwanted=OLD)}
    without_referrers = mirror(tags={"allow": ["v.*"]})
    unrelated = replace(image(), item=replace(image().item, entry=without_referrers.entries[0]))

    assert find_orphans([image()], (), REFERRERS.entries, records).tags == ()
    assert [orphan.is_due for orphan in find_orphans([unrelated], (), without_referrers.entries, records).tags] == [True]


def test_a_digest_tag_is_wanted_again_once_it_is_a_referrer() -> None:
    records = {V1: record(V1, IMAGE), SIGNATURE: record(SIGNATURE, FIRST, unwanted=OLD)}

    found = after_run(records, image(), results=pushed(V1, referrers={FIRST: SIG}))

    assert found[SIGNATURE].unwanted is None


def test_a_digest_tag_that_moves_has_one_digest_in_all_records() -> None:
    old = {FIRST: SIG, LISTED: None}
    records = {
        V1: record(V1, IMAGE, referrers=old),
        V2: record(V2, IMAGE, referrers=old),
        SIGNATURE: record(SIGNATURE, FIRST),
    }

    found = after_run(records, image(target_referrers={FIRST: SIG}), results=pushed(V1, referrers={SECOND: SIG}))

    assert found[V1].referrers == {SECOND: SIG, LISTED: None}
    assert found[V2].referrers == {LISTED: None}, "the next run pushes the new signature for it, too"
    assert (found[SIGNATURE].digest, found[SIGNATURE].own) == (SECOND, True)


def test_a_failed_target_has_the_record_again_that_the_run_replaced() -> None:
    theirs = {V1: record(V1, OTHER)}
    plan = Plan(images=(image(change="add", old=None),))
    results = MirrorResults(failures=fail("the target tag moved"))

    assert record_results(plan, results, theirs, record_intent(plan, theirs)) == theirs


def test_a_record_stays_where_a_failed_publication_may_have_set_the_tag() -> None:
    added = image(change="add", old=None)

    begun = after_run({}, added, results=MirrorResults(failures=fail("timed out"), begun=frozenset({V1})))
    failed = after_run({}, added, results=MirrorResults(failures=fail("no such layer")))
    vetoed = after_run({}, added, results=MirrorResults(vetoes={V1: GateVeto(gate="age", reason="too old")}))

    assert (begun[V1].digest, begun[V1].own, begun[V1].mirrored) == (IMAGE, True, None)
    assert (failed, vetoed) == ({}, {})


def test_an_intention_keeps_the_digest_that_the_tag_has_until_the_image_is_published() -> None:
    before = {V1: record(V1, OTHER)}
    old = Descriptor(media_type=mediatypes.OCI_MANIFEST, digest=OTHER, size=5)
    changed, added = image(old=old), image(change="add", old=None)

    killed = record_intent(Plan(images=(changed,)), before)
    killed_again = record_intent(Plan(images=(changed,)), killed)
    moved_by_others = record_intent(Plan(images=(changed,)), {V1: record(V1, FIRST)})
    published = after_run(killed, changed, results=MirrorResults())

    assert (killed[V1].digest, killed[V1].mirrored, killed[V1].replaces) == (IMAGE, None, OTHER)
    assert killed_again == killed
    assert Locked.from_json(json.loads(orjson.dumps(killed[V1].to_json())), at="lock") == killed[V1]
    assert moved_by_others[V1].replaces is None
    assert record_intent(Plan(images=(added,)), before)[V1].replaces is None
    assert (published[V1].digest, published[V1].replaces) == (IMAGE, None)
    assert "replaces" not in published[V1].to_json()


def test_a_record_of_other_entries_never_becomes_unwanted() -> None:
    other = Reference.parse("target.example/elsewhere:v1")
    records = {V1: record(V1, IMAGE), other: replace(record(other, OTHER), source="source.example/elsewhere:v1")}
    found = find_orphans([], [V1], mirror().entries, records).tags
    plan = Plan(images=(), orphans=found)

    after = record_results(plan, MirrorResults(), {}, records)

    assert [(orphan.target, orphan.since, orphan.is_due) for orphan in found] == [(other, None, False)]
    assert after == records
    assert ", 1 orphaned without an entry; " in plan_summary(plan)
    assert [row.outcome for row in plan_rows(plan)] == ["unowned"]


def test_only_the_plan_of_a_dry_run_counts_the_pulls_that_it_needs() -> None:
    quotas = {"source.example": Quota(limit=100, remaining=42, window_s=21600)}
    counter = CostCounter()
    counter.add([image()], {IMAGE})
    dry = Plan(images=(image(),), cost=counter.cost, quotas=quotas)
    real = replace(dry, is_dry=False)

    assert (dry.pulls_from("source.example"), real.pulls_from("source.example")) == (1, None)
    assert plan_summary(dry).endswith("; source.example: 1 of 42 pulls left")
    assert plan_summary(real).endswith("; source.example: 42 pulls left")


def test_the_options_for_referrers_are_recorded_only_once_they_were_compared() -> None:
    known = {V1: record(V1, IMAGE)}
    wanted = image()
    assert record_intent(Plan(images=(wanted,)), known)[V1].related is None
    assert after_run(known, wanted, results=pushed(V1, referrers={}))[V1].related == ("referrers", "digestTags")
    lost = MirrorResults(failures=fail("lost"), referrers={V1: {}})
    assert after_run(known, wanted, results=lost)[V1].related is None
    stopped = replace(pushed(V1, referrers={}), is_stopped=True)
    assert after_run(known, wanted, results=stopped)[V1].related is None
