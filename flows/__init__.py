"""Prefect flows, and the walk over the descriptor graph."""
