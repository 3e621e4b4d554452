"""Tests of the tasks and the plain code below them."""
