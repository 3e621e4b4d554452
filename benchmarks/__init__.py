"""Measure fetches and mirrors against floors and skopeo.

A floor is the least time that the same work can take (docs/dev/benchmarks.md). The benchmarks are no part of the tests, because
the times depend on the machine. The ratios depend on the machine less.
"""
