"""Real programs that tests talk to on loopback: they are what others run in production, so they say what is right.

`processes` starts and ends servers, `registry` is the CNCF registry, `skopeo` the copying tool. Each program comes
from Debian (`scripts/peers.sh` installs them); a test whose program is missing is skipped, or fails under CI.
"""
