# shellcheck shell=bash
# Sourced by the scripts in this directory: installs the tools they need (root on Debian).

debian() {
    local missing=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then return; fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

crates() {
    for crate in "$@"; do
        command -v "$crate" >/dev/null || cargo install --quiet --locked "$crate"
    done
}

# The directory of a program that is only on PyPI.
pypi() {
    local folder="$PWD/target/pypi/$1"
    if [ ! -d "$folder" ]; then pip install --quiet --root-user-action ignore --target "$folder" "$1"; fi
    echo "$folder/bin"
}

# Unpacks the newest Prometheus, Alertmanager and node_exporter of Debian into $root. $loader is the prefix of commands that run there.
newest_stack() {
    # shellcheck source=deploy/suites.sh
    source deploy/suites.sh
    suites_update
    root=$PWD/target/versions
    if [ ! -e "$root/complete" ]; then
        rm -rf "$root"
        # They need the libraries of their suite, which are newer than those of this machine.
        suites_unpack "$root" prometheus/sid promtool/sid prometheus-alertmanager/sid prometheus-node-exporter/sid libc6/sid
        touch "$root/complete"
    fi
    # Programs in that directory run with the libraries in that directory.
    libraries=$root/usr/lib/x86_64-linux-gnu
    # shellcheck disable=SC2034 # for the script that sources this file
    loader=("$libraries/ld-linux-x86-64.so.2" --library-path "$libraries")
}

fail() {
    echo "FAILED: $*" >&2
    exit 1
}
