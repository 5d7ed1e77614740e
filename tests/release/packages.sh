#!/usr/bin/env bash
# Builds and lints the packages, and installs, upgrades, removes and purges them in a fresh Debian root directory.
# No system is booted: the links that enable services show their state.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/release/tools.sh
source tests/release/tools.sh

debian lintian man-db mmdebstrap python3 rpm rpmlint systemd
crates cargo-deb cargo-generate-rpm
[ "${1:-}" = built ] || deploy/build.sh packages
debs=(dist/listenq_*_"$(dpkg --print-architecture)".deb)
rpms=(dist/listenq-*."$(uname -m)".rpm)
deb=${debs[0]} rpm=${rpms[0]}

echo "== lint"
lintian --allow-root --tag-display-limit 0 --fail-on error,warning "$deb"
rpmlint --config deploy/packages/rpm/rpmlint.toml "$rpm"

work=$(mktemp -d)
root=$work/root
trap 'rm -rf "$work"' EXIT
mmdebstrap --quiet --variant=essential bookworm "$root" /etc/apt/sources.list.d/debian.sources
# A copy of the root directory with its own rpm database, for the rpm checks below.
cp -a "$root" "$work/fedora"

wants=etc/systemd/system/multi-user.target.wants/listenq.service
socket_wants=etc/systemd/system/sockets.target.wants/listenq.socket
enabled() { [ -L "$root/$wants" ]; }
socket_enabled() { [ -L "$root/$socket_wants" ]; }
left() { find "$1" -xdev -path "$1/proc" -prune -o -name '*listenq*' -print; }

echo "== install the .deb"
dpkg --root="$root" --install "$deb"
chroot "$root" /usr/bin/listenq --version
chroot "$root" dpkg --verify listenq
enabled || fail "the service is not enabled"
socket_enabled || fail "the socket is not enabled"
for drop_in in unprivileged without-socket; do
    [ -f "$root/usr/share/listenq/systemd/$drop_in.conf" ] || fail "no drop-in $drop_in.conf"
done
for page in "$root"/usr/share/man/man1/listenq*.1.gz; do
    complaints=$(MANROFFSEQ='' MANWIDTH=80 man --warnings -E UTF-8 -l -Tutf8 -Z "$page" 2>&1 >/dev/null)
    [ -z "$complaints" ] || fail "$page: $complaints"
done
MANWIDTH=80 man -l "$root/usr/share/man/man1/listenq.1.gz" | grep -q LISTENQ_SAMPLE_INTERVAL || fail "no flags in the manual"
bash -c 'source "$1"; complete -p listenq' - "$root/usr/share/bash-completion/completions/listenq" >/dev/null

echo "== upgrade: what the administrator decided stays"
echo LISTENQ_LOG_LEVEL=debug >>"$root/etc/default/listenq"
systemctl --root="$root" disable --quiet listenq.service
dpkg --root="$root" --install "$deb"
grep -q '^LISTENQ_LOG_LEVEL=debug' "$root/etc/default/listenq" || fail "the upgrade undid an edit"
enabled && fail "the upgrade enabled what was disabled"
socket_enabled && fail "the upgrade enabled the socket"

echo "== remove, and purge"
dpkg --root="$root" --remove listenq
[ ! -e "$root/usr/bin/listenq" ] || fail "the program stays"
grep -q '^LISTENQ_LOG_LEVEL=debug' "$root/etc/default/listenq" || fail "removing took the configuration too"
dpkg --root="$root" --purge listenq
[ -z "$(left "$root")" ] || fail "purging left: $(left "$root")"

echo "== install, upgrade and remove the .rpm"
root=$work/fedora
# Debian does not have systemd's rpm helper: this replacement records its calls.
mkdir -p "$root/usr/lib/systemd"
cat >"$root/usr/lib/systemd/systemd-update-helper" <<'EOF'
#!/bin/sh
echo "$@" >>/calls
EOF
chmod 755 "$root/usr/lib/systemd/systemd-update-helper"
called() {
    local calls
    calls=$(cat "$root/calls" 2>/dev/null || true)
    rm -f "$root/calls"
    [ "$calls" = "$1" ] || fail "systemd was called with: $calls, not with: $1"
}
rpm --root "$root" --initdb
# The libraries are installed by dpkg, so the rpm database does not contain them.
requires=$(rpm --query --package --requires "$rpm")
grep -q '^libc\.so\.6(GLIBC_' <<<"$requires" || fail "the package does not say which libc it needs"
newest=$(grep -o 'GLIBC_[0-9.]*' <<<"$requires" | sort -uV | tail -n 1)
[ "$(printf '%s\n' "$newest" GLIBC_2.34 | sort -V | tail -n 1)" = GLIBC_2.34 ] || fail "needs $newest, newer than served"
rpm --root "$root" --nodeps --install "$rpm"
called "install-system-units listenq.service listenq.socket"
chroot "$root" /usr/bin/listenq --version
echo LISTENQ_LOG_LEVEL=debug >>"$root/etc/default/listenq"
rpm --root "$root" --nodeps --upgrade --force "$rpm"
grep -q '^LISTENQ_LOG_LEVEL=debug' "$root/etc/default/listenq" || fail "the upgrade undid an edit"
called "mark-restart-system-units listenq.service"
changed=$(rpm --root "$root" --verify --nodeps listenq || true)
[[ $changed =~ ^[^$'\n']*' c /etc/default/listenq'$ ]] || fail "rpm --verify: $changed"
rpm --root "$root" --erase listenq
called "remove-system-units listenq.service listenq.socket"
[ "$(left "$root")" = "$root/etc/default/listenq.rpmsave" ] || fail "removing left: $(left "$root")"
echo "packages: $(stat -c '%n %s bytes' "$deb" "$rpm" | paste -sd, | sed 's/,/, /')"
