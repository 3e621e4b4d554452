"""Fetches one descriptor as a process of a divided run, with short times of claims: for tests that pause the process.

    python -m tests.transfer.claimant JSON

JSON has the keys store, options, reference, digest, size, renew_s and silence_s.
"""

import json
import sys
from typing import Any

from prefect_dist.ocispec import Descriptor, Digest, Reference, mediatypes
from prefect_dist.storage.claims import ContentClaims
from prefect_dist.transfer.fetching import fetch
from prefect_dist.transfer.session import SessionSpec, open_session


def main(given: dict[str, Any]) -> None:
    """Fetch the descriptor, and print what the process did."""
    descriptor = Descriptor(media_type=mediatypes.OCI_LAYER, digest=Digest.parse(given["digest"]), size=given["size"])
    with open_session(SessionSpec(store=given["store"], store_options=given["options"], is_shared=True)) as session:
        kept = session.store
        kept.claims = ContentClaims(kept._backend, kept._layout, renew_s=given["renew_s"], silence_s=given["silence_s"])
        sys.stdout.write(f"{fetch(session, descriptor, Reference.parse(given['reference'])).receipt.status}\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
