"""Mirrors: what is configured, what a run plans, does and reports. The flow itself is `flows.mirror`."""
