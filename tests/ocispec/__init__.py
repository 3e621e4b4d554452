"""Tests of values and grammar: no I/O, no Prefect."""
