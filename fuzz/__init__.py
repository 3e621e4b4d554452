"""Coverage-guided fuzzing; not part of the tests."""
