#!/usr/bin/env bash
# Checks the systemd unit: that systemd understands it, and that it leaves little exposed.
set -euo pipefail
cd "$(dirname "$0")/.."

# `verify` wants the program to be there.
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
sed 's|^ExecStart=/usr/bin/listenq|ExecStart=/bin/true|' deploy/systemd/listenq.service >"$root/listenq.service"
complaints=$(systemd-analyze verify "$root/listenq.service" 2>&1 | grep listenq.service || true)
if [ -n "$complaints" ]; then
    echo "$complaints" >&2
    exit 1
fi
# The threshold is ten times the score.
systemd-analyze security --offline=yes --threshold=15 --no-pager "$root/listenq.service" | tail -n 1
# A drop-in is read after the unit; so is what stands below it.
mkdir "$root/all"
cat "$root/listenq.service" deploy/systemd/all-namespaces.conf >"$root/all/listenq.service"
complaints=$(systemd-analyze verify "$root/all/listenq.service" 2>&1 | grep listenq.service || true)
if [ -n "$complaints" ]; then
    echo "$complaints" >&2
    exit 1
fi
systemd-analyze security --offline=yes --threshold=25 --no-pager "$root/all/listenq.service" | tail -n 1
# With the socket and its drop-in.
mkdir "$root/socket"
cat "$root/listenq.service" deploy/systemd/socket-activation.conf >"$root/socket/listenq.service"
cp deploy/systemd/listenq.socket "$root/socket"
complaints=$(systemd-analyze verify "$root/socket/listenq.socket" "$root/socket/listenq.service" 2>&1 | grep 'listenq\.' || true)
if [ -n "$complaints" ]; then
    echo "$complaints" >&2
    exit 1
fi
