"""Fetch, verify, store and mirror OCI and Docker images as Prefect runs."""
