"""Tests of prefect-dist; the tree mirrors the source."""
