"""Candidates for mounts: the repositories that have some content."""

import time

from prefect_dist.ocispec import Digest, Reference
from prefect_dist.transfer.delivery import MountCandidates

BASE_LAYER, OTHER = Digest.of(b"base"), Digest.of(b"other")
REPOSITORIES = 20_000
MOST_SECONDS = 4.0


def place(repository: str, host: str = "registry.example") -> Reference:
    return Reference.parse(f"{host}/{repository}:1")


def test_content_is_mounted_from_another_repository_of_the_same_registry() -> None:
    known = MountCandidates()
    known.note(place("a"), BASE_LAYER)
    assert known.mount_candidate(place("a"), BASE_LAYER) is None
    assert known.mount_candidate(place("b"), BASE_LAYER) == "a"
    assert known.mount_candidate(place("b"), OTHER) is None
    assert known.mount_candidate(place("b", "elsewhere.example"), BASE_LAYER) is None
    for repository in ("a", "b", "c"):
        known.note(place(repository), BASE_LAYER)
    assert known.mount_candidate(place("a"), BASE_LAYER) == "b"
    assert known.mount_candidate(place("c"), BASE_LAYER) == "a"
    assert [known.has(place(repository), BASE_LAYER) for repository in ("a", "c", "d")] == [True, True, False]


def test_a_base_layer_in_thousands_of_repositories_takes_little_time() -> None:
    known = MountCandidates()
    places = [place(f"team/app{number}") for number in range(REPOSITORIES)]
    began = time.process_time()
    for one in places:
        known.mount_candidate(one, BASE_LAYER)
        known.note(one, BASE_LAYER)
    assert time.process_time() - began < MOST_SECONDS
    assert all(known.has(one, BASE_LAYER) for one in places)
