"""Measure fetches and mirrors against lower bounds and skopeo.

The benchmarks are no part of the tests, because the times depend on the machine. The ratios depend on the machine less.
"""
