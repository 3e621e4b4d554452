"""Tests, in folders that mirror the source."""

import pytest

# Checks that several test modules share speak as those in the modules do.
pytest.register_assert_rewrite("tests.storage.conformance")
