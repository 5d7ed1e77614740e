#!/usr/bin/env bash
# Checks the systemd unit, alone and with each drop-in: its syntax and its security score.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

# The unit in its own directory; systemd reads drop-ins after it, from the directory below.
unit() {
    mkdir "$root/$1"
    # `verify` needs the program to exist.
    sed 's|^ExecStart=/usr/bin/listenq|ExecStart=/bin/true|' deploy/systemd/listenq.service |
        cat - "${@:2}" >"$root/$1/listenq.service"
    cp deploy/systemd/listenq.socket "$root/$1"
}

verify() {
    local complaints
    complaints=$(systemd-analyze verify "$@" 2>&1 | grep 'listenq\.' || true)
    if [ -n "$complaints" ]; then
        echo "$complaints" >&2
        exit 1
    fi
}

# The threshold is ten times the score.
exposure() {
    systemd-analyze security --offline=yes --threshold="$2" --no-pager "$root/$1/listenq.service" | tail -n 1
}

unit all
verify "$root/all/listenq.socket" "$root/all/listenq.service"
exposure all 24

unit unprivileged deploy/systemd/unprivileged.conf
verify "$root/unprivileged/listenq.service"
exposure unprivileged 15

unit without-socket deploy/systemd/without-socket.conf
verify "$root/without-socket/listenq.service"
