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

# The directory of a program that only PyPI has.
pypi() {
    local folder="$PWD/target/pypi/$1"
    if [ ! -d "$folder" ]; then pip install --quiet --root-user-action ignore --target "$folder" "$1"; fi
    echo "$folder/bin"
}

fail() {
    echo "FAILED: $*" >&2
    exit 1
}
