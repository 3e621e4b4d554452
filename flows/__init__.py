"""Whole runs as Prefect flows, and the walk over the descriptor graph.

`report` and `progress` know nothing of Prefect, so that a command line can show them before it loads it.
"""
