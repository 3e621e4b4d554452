"""Mirrors: configuration, selection, plan, lock file and reports."""
