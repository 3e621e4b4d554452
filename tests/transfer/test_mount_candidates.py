"""Mount candidates: repositories of a registry from which a blob can be mounted."""

import time

from prefect_dist.ocispec import Digest, Reference
from prefect_dist.transfer.repositories import MountCandidates

BASE_LAYER, OTHER = Digest.of(b"base"), Digest.of(b"other")
REPOSITORIES = 20_000
MOST_SECONDS = 4.0


def reference(repository: str, host: str = "registry.example") -> Reference:
    return Reference.parse(f"{host}/{repository}:1")


def test_the_mount_candidate_is_another_repository_of_the_same_registry() -> None:
    known = MountCandidates()
    known.note(reference("a"), BASE_LAYER)
    assert known.mount_candidate(reference("a"), BASE_LAYER) is None
    assert known.mount_candidate(reference("b"), BASE_LAYER) == "a"
    assert known.mount_candidate(reference("b"), OTHER) is None
    assert known.mount_candidate(reference("b", "elsewhere.example"), BASE_LAYER) is None
    for repository in ("a", "b", "c"):
        known.note(reference(repository), BASE_LAYER)
    assert known.mount_candidate(reference("a"), BASE_LAYER) == "b"
    assert known.mount_candidate(reference("c"), BASE_LAYER) == "a"
    assert [known.has(reference(repository), BASE_LAYER) for repository in ("a", "c", "d")] == [True, True, False]


def test_lookups_for_a_layer_in_thousands_of_repositories_are_fast() -> None:
    known = MountCandidates()
    references = [reference(f"team/app{number}") for number in range(REPOSITORIES)]
    start = time.process_time()
    for one in references:
        known.mount_candidate(one, BASE_LAYER)
        known.note(one, BASE_LAYER)
    assert time.process_time() - start < MOST_SECONDS
    assert all(known.has(one, BASE_LAYER) for one in references)
