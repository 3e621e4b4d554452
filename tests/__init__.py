"""Tests, in one folder for each layer of the source."""

import pytest

# Assertions in shared checks get the same messages as assertions in test modules.
pytest.register_assert_rewrite("tests.storage.conformance")
