#!/usr/bin/env bash
# Boots kernels of Debian in an emulated machine, runs tests/release/kernels/programme.py in each, and writes docs/kernels.md.
# Usage: tests/release/kernels.sh [KERNEL...]; KERNEL is VERSION[-cloud]-ARCHITECTURE, such as 6.12-cloud-amd64 or newest-arm64.
# tests/release/kernels.sh pods [KERNEL...] runs tests/release/kernels/pods.py instead, with the hash tables of a machine with 128 GiB.
# The emulator counts instructions, one for each nanosecond of the guest: the load of this machine changes no result.
# LISTENQ_amd64 and LISTENQ_arm64 name programs to use instead of static ones built here.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/release/tools.sh
source tests/release/tools.sh
# shellcheck source=deploy/arm64.sh
source deploy/arm64.sh

programme=programme parameters=() kernels=(5.10-amd64 6.1-cloud-amd64 6.12-cloud-amd64 6.18-amd64 newest-cloud-amd64 6.12-arm64)
if [ "${1:-}" = pods ]; then
    shift
    programme=pods parameters=(thash_entries=65536) kernels=(6.1-cloud-amd64)
fi
(($# == 0)) || kernels=("$@")
work=${KERNELS_FOLDER:-$PWD/target/kernels}
results=$work/$programme
mkdir -p "$results"

debian cpio gcc-aarch64-linux-gnu ipxe-qemu kmod libc6-dev-arm64-cross python3 qemu-system-arm qemu-system-x86 seabios xz-utils
suites_update

# The newest package of a kernel.
resolve() {
    local kernel=$1 arch=${1##*-} flavour=amd64 version=${1%%-*}
    flavour=${kernel#"$version"-}
    version=${version//./\\.}
    [ "$version" != newest ] || version='[0-9]+\.[0-9]+'
    suites_apt apt-cache search --names-only "^linux-image-$version" | cut -d' ' -f1 |
        grep -E "^linux-image-$version\.[0-9]+[^-]*(-[0-9]+)?-$flavour\$" | sort -V | tail -n 1 | sed "s/\$/:$arch/"
}

# Builds the static program for one architecture, unless LISTENQ_$1 names one, and prints its path.
program() {
    local given=LISTENQ_$1 target=x86_64-unknown-linux-gnu compile=env
    if [ -n "${!given:-}" ]; then
        echo "${!given}"
        return
    fi
    if [ "$1" = arm64 ]; then
        arm64_toolchain >&2
        target=$arm64_target compile=arm64_env
    fi
    CARGO_TARGET_DIR=$work/build RUSTFLAGS='-C target-feature=+crt-static' \
        "$compile" cargo build --quiet --release --locked --bin listenq --target "$target" >&2
    echo "$work/build/$target/release/listenq"
}

# The part of the initramfs that all kernels of an architecture share: busybox, iproute2, Python and the programme.
userland() {
    local arch=$1 root=$work/userland-$1 package packages=()
    [ ! -e "$root/complete" ] || return 0
    rm -rf "$root"
    for package in busybox-static iproute2 libbpf1 libbsd0 libc6 libcap2 libcom-err2 libdb5.3 libelf1 libexpat1 libffi8 libgcc-s1 libgssapi-krb5-2 \
        libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 libmd0 libmnl0 libpcre2-8-0 libpython3.11-minimal libpython3.11-stdlib \
        libselinux1 libssl3 libtirpc3 libxtables12 python3.11-minimal zlib1g; do
        packages+=("$package:$arch/bookworm")
    done
    suites_unpack "$root" "${packages[@]}"
    rm -rf "${root:?}"/usr/{share,lib/python3.11/{distutils,email,lib2to3,unittest},lib/*/{engines-3,gconv,ossl-modules}}
    mkdir -p "$root"/{dev,etc,proc,run,sys,tmp}
    mknod "$root/dev/console" c 5 1
    echo '127.0.0.1 localhost' >"$root/etc/hosts"
    touch "$root/complete"
}

# Writes the initramfs of one kernel. Arguments: architecture, root directory of the unpacked kernel, directory for its files, target file.
initramfs() {
    local own=$3 folder release module file
    rm -rf "$own"
    mkdir -p "$own/bin" "$own/programme"
    install -m 755 tests/release/kernels/init "$own/init"
    install -m 644 tests/release/kernels/{daemon,pods,programme,scenes}.py "$own/programme/"
    install -m 755 "$(program "$1")" "$own/bin/listenq" || return 1
    folder=$(find "$2" -type d -path '*lib/modules/*' -prune | head -n 1)
    [ -n "$folder" ] || fail "no modules in $2"
    release=$(basename "$folder")
    mkdir -p "$own/lib/modules/$release"
    for module in inet_diag tcp_diag udp_diag unix_diag mptcp_diag; do
        file=$(find "$folder" -name "$module.ko*" | head -n 1)
        case $file in
        *.xz) xz -dc "$file" >"$own/lib/modules/$release/$module.ko" ;;
        ?*) cp "$file" "$own/lib/modules/$release/" ;;
        esac
    done
    # Without these files depmod only warns.
    cp "$folder"/modules.{builtin,order} "$own/lib/modules/$release/" 2>/dev/null || true
    depmod -b "$own" "$release" 2>/dev/null
    # The programme makes the modules visible after it has checked listenq without them.
    mv "$own/lib/modules" "$own/lib/modules.hidden"
    for folder in "$work/userland-$1" "$own"; do (cd "$folder" && find . | cpio --quiet -o -H newc); done | gzip -1 >"$4"
}

# Boots one kernel and stores its output.
boot() {
    local kernel=$1 arch=${1##*-} package unpacked=$work/$1.unpacked log=$results/$1.log image machine console emulator part parts=()
    package=$(resolve "$kernel")
    [ -n "$package" ] || fail "no package for $kernel"
    rm -rf "$unpacked"
    # Debian's newest kernels are in several packages.
    for part in $(suites_apt apt-cache depends "$package" | sed -nE 's/^ *Depends: (linux-(base|binary|modules)-[^: ]*).*/\1/p'); do
        parts+=("$part:$arch")
    done
    suites_unpack "$unpacked" "$package" "${parts[@]}" || fail "no kernel in $package"
    userland "$arch" || fail "no userland for $arch"
    initramfs "$arch" "$unpacked" "$work/$kernel.own" "$work/$kernel.initramfs" || fail "no initramfs for $kernel"
    image=$(find "$unpacked" -name 'vmlinu[xz]*' -type f | head -n 1)
    [ -n "$image" ] || fail "no image in $package"
    case $arch in
    amd64) emulator=x86_64 machine=(-machine "pc,accel=tcg" -cpu "max,la57=off") console=ttyS0 ;;
    arm64) emulator=aarch64 machine=(-machine virt -cpu cortex-a72) console=ttyAMA0 ;;
    *) fail "no emulator for $arch" ;;
    esac
    timeout "${KERNELS_TIMEOUT:-3600}" "qemu-system-$emulator" "${machine[@]}" -icount shift=0,sleep=off -m 1024 -nographic -no-reboot -nic none \
        -kernel "$image" -initrd "$work/$kernel.initramfs" \
        -append "console=$console panic=-1 quiet random.trust_cpu=on psi=1 programme=$programme ${parameters[*]}" \
        </dev/null >"$log" 2>&1 || true
    echo "@@ {\"check\": \"commit\", \"result\": \"value\", \"note\": \"$(git rev-parse --short=8 HEAD)\"}" >>"$log"
    # Removes the control sequences of the console.
    sed -Ei 's/\r//g; s/\x1b(\[[?0-9;]*[a-zA-Z]|c)//g' "$log"
    rm -rf "$unpacked" "$work/$kernel.own" "$work/$kernel.initramfs"
    tests/release/kernels/table.py "$work" "$programme" "$kernel"
}

wrong=0
for kernel in "${kernels[@]}"; do
    boot "$kernel" || wrong=1
done
tests/release/kernels/table.py "$work" all >docs/kernels.md
((wrong == 0)) || fail "see $results"
