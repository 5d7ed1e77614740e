#!/usr/bin/env bash
# Runs the Ansible role in a fresh Debian root directory. The role must install, change nothing in a second run, change flags and
# addresses, and drop privileges. No system is booted: the links that enable units show their state.
# Usage: tests/release/ansible.sh [ARCHIVE], by default the archive in dist/, which it builds when it is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/release/tools.sh
source tests/release/tools.sh

debian mmdebstrap python3-pip
bin=$(pypi ansible-core)
archive=${1:-}
if [ -z "$archive" ]; then
    archives=(dist/listenq-*.linux-amd64.tar.gz)
    [ -f "${archives[0]}" ] || deploy/build.sh tarball
    archives=(dist/listenq-*.linux-amd64.tar.gz)
    archive=${archives[0]}
fi

work=$(mktemp -d)
root=$work/root
trap 'rm -rf "$work"' EXIT
mmdebstrap --quiet --variant=essential --include=python3,systemd,systemd-sysv bookworm "$root" /etc/apt/sources.list.d/debian.sources
mkdir -p "$root/ansible"
cp -a "$(dirname "$bin")" "$root/ansible/pypi"
cp -a deploy/ansible "$root/ansible/deploy"
cp "$archive" "$root/ansible/listenq.tar.gz"
# The shell of a chroot has no /proc/1/root to compare with; systemctl then works on the files.
ansible() {
    chroot "$root" env PYTHONPATH=/ansible/pypi SYSTEMD_OFFLINE=1 LC_ALL=C.UTF-8 ANSIBLE_LOCALHOST_WARNING=false ANSIBLE_HOME=/ansible/home \
        python3 /ansible/pypi/bin/ansible-playbook --inventory localhost, --connection local /ansible/deploy/playbook.yml \
        --extra-vars listenq_archive=/ansible/listenq.tar.gz "$@" >"$work/log" 2>&1 || fail "ansible: $(cat "$work/log")"
}
changed() { sed -n 's/.*changed=\([0-9]*\).*/\1/p' "$work/log"; }
etc=$root/etc/systemd/system

echo "== install"
ansible
chroot "$root" /usr/bin/listenq --version
for unit in listenq.service listenq.socket; do
    chroot "$root" env SYSTEMD_OFFLINE=1 systemctl is-enabled --quiet "$unit" || fail "$unit is not enabled: $(cat "$work/log")"
done
cmp deploy/systemd/listenq.service "$etc/listenq.service"
[ ! -e "$etc/listenq.service.d/unprivileged.conf" ] || fail "the privileges are dropped"

echo "== again: changes nothing"
ansible
[ "$(changed)" = 0 ] || fail "the second run changed something: $(cat "$work/log")"

echo "== flags, addresses, no privileges"
ansible --extra-vars '{"listenq_environment": {"LISTENQ_LOG_LEVEL": "debug"}, "listenq_listen": ["127.0.0.1:19511"], "listenq_unprivileged": true}'
grep -qx LISTENQ_LOG_LEVEL=debug "$root/etc/default/listenq" || fail "no flags"
grep -qx ListenStream=127.0.0.1:19511 "$etc/listenq.socket.d/address.conf" || fail "no address"
cmp deploy/systemd/unprivileged.conf "$etc/listenq.service.d/unprivileged.conf"
chroot "$root" env SYSTEMD_OFFLINE=1 systemd-analyze --root=/ verify /etc/systemd/system/listenq.socket || fail "systemd refuses the socket"

echo "== back to the defaults"
ansible
for drop_in in service.d/unprivileged.conf socket.d/address.conf; do
    [ ! -e "$etc/listenq.$drop_in" ] || fail "the drop-in $drop_in stays"
done
echo "ansible: role installed, unchanged, changed and reset"
