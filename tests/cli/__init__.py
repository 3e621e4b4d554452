"""Tests of the `dist` command."""
