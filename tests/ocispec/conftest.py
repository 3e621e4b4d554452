"""Settings of property tests."""

from hypothesis import settings

# A loaded machine is slow; what hangs is ended by pytest's time-out.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
