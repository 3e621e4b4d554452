"""Prefect tasks, one for each unit of work on content."""
