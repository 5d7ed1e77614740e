#!/usr/bin/env bash
# Runs the attacks on memory (tests/abuse) in an emulated machine whose kernel has a memory controller: the daemon is in a cgroup v2 with
# memory.max = 64 MiB, the limit of the systemd unit and of the chart, and socket buffers count. Usage: tests/release/hostile.sh [TEST...]
# The emulator counts instructions, one for each nanosecond of the guest: the load of this machine changes no result.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/release/tools.sh
source tests/release/tools.sh
# shellcheck source=deploy/suites.sh
source deploy/suites.sh

tests=("$@")
if (($# == 0)); then tests=(never_read); fi
work=$PWD/target/hostile
mkdir -p "$work"
debian busybox-static cpio curl iproute2 ipxe-qemu kmod python3 qemu-system-x86 seabios
suites_update

# The newest 6.12 kernel.
package=$(suites_apt apt-cache search --names-only '^linux-image-6\.12\.[0-9]+\+deb13-cloud-amd64$' | cut -d' ' -f1 | sort -V | tail -n 1)
[ -n "$package" ] || fail "no kernel"
rm -rf "$work/kernel" "$work/root"
suites_unpack "$work/kernel" "$package"

# The test and the daemon: the test starts the daemon at the path where cargo built it.
CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo test --quiet --release --locked --test abuse --no-run --message-format=json >"$work/built.json"
built() {
    python3 -c '
import json, sys
for line in open(sys.argv[1]):
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == sys.argv[2]: print(message["executable"])' "$work/built.json" "$1" | tail -n 1
}

# Copies a program with its libraries to the same paths of the machine.
copy() {
    local file
    for file in "$1" $(ldd "$1" | grep -o '/[^ ]*'); do
        mkdir -p "$work/root$(dirname "$file")"
        cp -L "$file" "$work/root$file"
    done
}

mkdir -p "$work/root"/{bin,dev,etc,proc,run,sys,tmp,usr/bin,usr/share}
mknod "$work/root/dev/console" c 5 1
echo '127.0.0.1 localhost' >"$work/root/etc/hosts"
install -m 755 /bin/busybox "$work/root/bin/busybox"
install -m 755 tests/release/hostile/init "$work/root/init"
echo "TESTS='${tests[*]}' ABUSE_SECONDS=${ABUSE_SECONDS:-6}; export ABUSE_SECONDS" >"$work/root/environment"
test=$(built abuse) daemon=$(built listenq)
for program in "$(command -v curl)" "$(command -v ss)" "$(command -v ip)" "$daemon" "$test"; do copy "$program"; done
mv "$work/root$test" "$work/root/abuse"
for tool in curl ss ip; do [ -e "$work/root/usr/bin/$tool" ] || ln -s "$(command -v $tool)" "$work/root/usr/bin/$tool"; done
release=$(basename "$(find "$work/kernel" -type d -path '*lib/modules/*' -prune | head -n 1)")
modules=$work/root/lib/modules/$release
mkdir -p "$modules"
for module in inet_diag tcp_diag unix_diag; do
    file=$(find "$work/kernel" -name "$module.ko*" | head -n 1)
    case $file in
    *.xz) xz -dc "$file" >"$modules/$module.ko" ;;
    ?*) cp "$file" "$modules/" ;;
    esac
done
depmod -b "$work/root" "$release" 2>/dev/null
(cd "$work/root" && find . | cpio --quiet -o -H newc) | gzip -1 >"$work/initramfs"

timeout "${HOSTILE_TIMEOUT:-7200}" qemu-system-x86_64 -machine pc,accel=tcg -cpu max,la57=off -icount shift=0,sleep=off -m 2048 -nographic -no-reboot \
    -nic none -kernel "$(find "$work/kernel" -name 'vmlinuz*' -type f | head -n 1)" -initrd "$work/initramfs" \
    -append "console=ttyS0 panic=-1 quiet random.trust_cpu=on" </dev/null >"$work/log" 2>&1 || true
sed -Ei 's/\r//g; s/\x1b(\[[?0-9;]*[a-zA-Z]|c)//g' "$work/log"
cat "$work/log"
grep -q '^the attacks ended with status 0$' "$work/log" || fail "see $work/log"
! grep -qE 'Out of memory|oom-kill' "$work/log" || fail "out of memory: see $work/log"
