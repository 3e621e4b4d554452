"""Servers on loopback for the tests. They import nothing of the project."""
