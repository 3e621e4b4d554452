"""Whole fetches, timed side by side with their floors. Not part of the tests: figures depend on the machine, ratios less."""
