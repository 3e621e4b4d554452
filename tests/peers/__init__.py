"""Real programs that tests talk to on loopback: they are what others run in production, so they say what is right.

`processes` starts and ends servers, `registry` is the CNCF registry, `seaweedfs` an S3 server, `skopeo` the copying tool. The
programs come from Debian (`scripts/peers.sh` installs them), SeaweedFS from PyPI with the extra `dev`; a test whose program
is missing is skipped, or fails under CI.
"""
