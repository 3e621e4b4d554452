#!/usr/bin/env bash
# Install the real programs that the tests need. Does nothing if all programs are installed.
#
# Needs root or sudo without a password. Without them, prints the command that root has to run. If CI is set, this is a
# failure, because tests in CI do not skip missing peers.
set -euo pipefail

# PROGRAM=PACKAGE. tests/peers looks for the programs.
PEERS=(docker-registry=docker-registry skopeo=skopeo umoci=umoci nginx=nginx chromium=chromium prometheus-pushgateway=prometheus-pushgateway)
# These packages also start a service on a well-known port. Tests start the programs on free ports.
SERVICES=(docker-registry nginx prometheus-pushgateway)
POLICY=/usr/sbin/policy-rc.d

is_installed() {
    PATH="$PATH:/usr/sbin" command -v "$1" >/dev/null
}

# Debian runs policy-rc.d before a package starts its service; the exit status 101 forbids the start. An existing policy
# belongs to the administrator and stays unchanged.
forbid_services() {
    [[ -e $POLICY || -L $POLICY ]] && return
    trap 'rm -f "$POLICY"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
}

# The policy of this script does not last until the next boot, and an existing policy may have allowed the start.
disable_service() {
    update-rc.d "$1" disable
    if [[ -d /run/systemd/system ]]; then
        systemctl stop "$1.service"
    fi
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    forbid_services
    apt-get update
    apt-get install --yes --no-install-recommends "$@"
    for service in "${SERVICES[@]}"; do
        if [[ " $* " == *" $service "* ]]; then
            disable_service "$service"
        fi
    done
}

ask_for_root() {
    if sudo -n true 2>/dev/null; then
        exec sudo -n "$BASH" "$0"
    fi
    echo "peers.sh: needs root; run it as root, or: apt-get update && apt-get install --no-install-recommends $*"
    [[ -z ${CI:-} ]]
}

missing=()
for peer in "${PEERS[@]}"; do
    is_installed "${peer%%=*}" || missing+=("${peer#*=}")
done

if ((${#missing[@]} == 0)); then
    echo "peers.sh: all peers are installed"
elif ((EUID == 0)); then
    install_packages "${missing[@]}"
else
    ask_for_root "${missing[@]}"
fi
