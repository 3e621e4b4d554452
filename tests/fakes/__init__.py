"""Real peers for the tests: servers on loopback that import nothing of the project."""
