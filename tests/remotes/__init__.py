"""Tests of `remotes`, against the strict fake registry and the real one of the CNCF."""
