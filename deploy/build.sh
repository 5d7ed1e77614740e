#!/usr/bin/env bash
# Builds the files of a release in dist/: the packages, the image as an OCI archive, and the Helm chart with the manifests
# rendered from it. The same commit gives the same bytes in every directory. Needs cargo-deb and cargo-generate-rpm;
# buildah, setcap and root for the image; python3, npm and node for the chart.
# Usage: deploy/build.sh [packages] [image] [chart]; without arguments all.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(rustc -vV | sed -n 's/^host: //p')
version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export LISTENQ_REVISION=${LISTENQ_REVISION:-$(git rev-parse --short=12 HEAD)}
export LC_ALL=C TZ=UTC
umask 022

# Keeps the paths of this machine out of the program. Arguments: target directory and flags.
program() {
    CARGO_TARGET_DIR="$PWD/target/$1" \
        CFLAGS="-ffile-prefix-map=$PWD=. -ffile-prefix-map=$cargo_home=cargo" \
        RUSTFLAGS="${*:2} --remap-path-prefix=$PWD=. --remap-path-prefix=$cargo_home=cargo" \
        cargo build --release --locked --bin listenq --target "$target"
    install -m 755 "target/$1/$target/release/listenq" "target/$1/listenq"
}

licences() {
    python3 deploy/packages/licences.py "$target" | gzip -9n >"$1/third-party-licences.gz"
}

changelogs() {
    gzip -9nc CHANGELOG.md >target/package/changelog.gz
    cat >target/package/changelog.Debian <<EOF
listenq ($version-1) unstable; urgency=medium

  * What is new is in changelog.gz.

 -- $(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)  $(date -R -d "@$SOURCE_DATE_EPOCH")
EOF
}

packages() {
    rm -rf target/package dist/*.deb dist/*.rpm
    mkdir -p target/package
    program dynamic
    install -m 755 target/dynamic/listenq target/package/listenq
    cargo run --quiet --locked --example manual -- target/package
    gzip -9n target/package/*.1
    licences target/package
    changelogs
    cargo deb --quiet --no-build --locked --output dist/
    cargo generate-rpm --auto-req builtin --source-date "$SOURCE_DATE_EPOCH" --output dist/
}

image() {
    local context=target/image
    rm -rf "$context" dist/*-image.tar
    mkdir -p "$context"
    program static -C target-feature=+crt-static
    install -m 755 target/static/listenq "$context/listenq"
    install -m 644 LICENSE "$context/LICENSE"
    licences "$context"
    # Without the effective bit: with it the kernel would refuse to start the program in a container without these capabilities.
    setcap cap_sys_admin,cap_sys_ptrace,cap_dac_read_search+p "$context/listenq"
    buildah build --quiet --format oci --timestamp "$SOURCE_DATE_EPOCH" \
        --label org.opencontainers.image.title=listenq \
        --label org.opencontainers.image.version="$version" \
        --label org.opencontainers.image.revision="$LISTENQ_REVISION" \
        --label org.opencontainers.image.licenses=Apache-2.0 \
        --label org.opencontainers.image.source=https://github.com/listenq/listenq \
        --identity-label=false --tag "localhost/listenq:$version" \
        --file deploy/image/Containerfile "$context"
    # buildah's own archive would contain the time of packing.
    rm -rf target/layout
    buildah push --quiet "localhost/listenq:$version" "oci:target/layout:listenq:$version"
    tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
        -cf "dist/listenq-$version-image.tar" -C target/layout .
}

# The chart is released as it was checked, with the same Helm library.
chart() {
    tests/chart.sh
    target/chart/venv/bin/python tests/chart/release.py dist
}

mkdir -p dist
if (($# == 0)); then set -- packages image chart; fi
for what in "$@"; do
    case $what in
    packages | image | chart) "$what" ;;
    *)
        echo "not packages, image or chart: $what" >&2
        exit 64
        ;;
    esac
done
(cd dist && sha256sum listenq* >SHA256SUMS && cat SHA256SUMS)
