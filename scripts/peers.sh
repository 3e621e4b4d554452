#!/usr/bin/env bash
# Install the real programs that tests talk to on loopback; does nothing when all of them are there.
#
# Needs root or passwordless sudo. Without either it prints the command for somebody who has them; under CI (CI set)
# that is a failure, because there the tests do not skip missing peers.
set -euo pipefail

# PROGRAM=PACKAGE, as tests/peers looks for them.
PEERS=(docker-registry=docker-registry skopeo=skopeo umoci=umoci nginx=nginx chromium=chromium prometheus-pushgateway=prometheus-pushgateway)
# These packages also bring a service on a well-known port; tests start their own on free ports.
SERVICES=(docker-registry nginx prometheus-pushgateway)
POLICY=/usr/sbin/policy-rc.d

is_installed() {
    PATH="$PATH:/usr/sbin" command -v "$1" >/dev/null
}

# Debian asks policy-rc.d before a package starts its service; 101 means no. A policy that is there is somebody's own.
forbid_services() {
    [[ -e $POLICY || -L $POLICY ]] && return
    trap 'rm -f "$POLICY"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
}

# Our policy is gone at the next boot, and somebody's own may have let the service start.
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
