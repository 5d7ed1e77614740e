#!/usr/bin/env bash
# Builds the files of a release in dist/: the packages, an archive with the static program, the image as an OCI archive, the list of
# libraries (SBOM), and the Helm chart with the manifests rendered from it. The same commit gives the same bytes in every directory.
# Needs cargo-deb and cargo-generate-rpm; buildah, setcap and root for the image; python3, npm and node for the chart.
# Usage: deploy/build.sh [packages] [tarball] [image] [sbom] [chart]; without arguments all.
# With ARCH=arm64 it builds everything but the chart, which is the same, for arm64, with the compiler of deploy/arm64.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(rustc -vV | sed -n 's/^host: //p')
arch=${ARCH:-$(dpkg --print-architecture)}
compile="env"
if [ "$arch" != "$(dpkg --print-architecture)" ]; then
    [ "$arch" = arm64 ] || { echo "ARCH=$arch: only arm64 is cross-built" >&2; exit 64; }
    # shellcheck source=deploy/arm64.sh
    source deploy/arm64.sh
    arm64_toolchain
    target=$arm64_target compile=arm64_env
fi
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
        "$compile" cargo build --release --locked --bin listenq --target "$target"
    install -m 755 "target/$1/$target/release/listenq" "target/$1/listenq-$arch"
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
    rm -rf target/package dist/listenq_*_"$arch".deb dist/listenq-*."$(machine)".rpm
    mkdir -p target/package
    program dynamic
    install -m 755 "target/dynamic/listenq-$arch" target/package/listenq
    cargo run --quiet --locked --example manual -- target/package
    gzip -9n target/package/*.1
    licences target/package
    changelogs
    local variant=()
    if [ "$compile" != env ]; then
        variant=(--variant "$arch")
        check_depends
    fi
    cargo deb --quiet --no-build --locked --target "$target" "${variant[@]}" --output dist/
    # The builtin search runs the program's loader, which a cross-built program has not.
    cargo generate-rpm --auto-req /usr/lib/rpm/find-requires --source-date "$SOURCE_DATE_EPOCH" --arch "$(machine)" --output dist/
}

# Checks that the program needs what the variant of its .deb package declares.
check_depends() {
    local libraries glibc
    libraries=$("$(machine)-linux-gnu-readelf" -d target/package/listenq | sed -n 's/.*(NEEDED).*\[\(.*\)\.so.*/\1/p' | sort | tr '\n' ' ')
    glibc=$("$(machine)-linux-gnu-objdump" -T target/package/listenq | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
    [ "$libraries $glibc" = "ld-linux-aarch64 libc libgcc_s libm  GLIBC_2.34" ] || {
        echo "the variant $arch in Cargo.toml declares other libraries than these: $libraries $glibc" >&2
        exit 1
    }
}

# The name of the architecture in .rpm packages, which is the kernel's.
machine() { echo "${target%%-*}"; }

static_program() {
    program static -C target-feature=+crt-static
}

# Packs a directory without the current time and user, so that archives are reproducible. Arguments: its parent, its name.
archive() {
    tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s -cf - -C "$1" "$2"
}

tarball() {
    local name=listenq-$version.linux-$arch
    rm -rf target/tarball "dist/$name.tar.gz"
    mkdir -p "target/tarball/$name"
    static_program
    install -m 755 "target/static/listenq-$arch" "target/tarball/$name/listenq"
    install -m 644 LICENSE README.md "target/tarball/$name"
    install -D -m 644 -t "target/tarball/$name/systemd" deploy/systemd/*
    licences "target/tarball/$name"
    archive target/tarball "$name" | gzip -9n >"dist/$name.tar.gz"
}

sbom() {
    python3 deploy/packages/sbom.py "$target" "$version" >"dist/listenq-$version.linux-$arch.cdx.json"
}

# The name of the image's archive. The name for amd64 contains no architecture.
image_name() {
    if [ "$arch" = amd64 ]; then echo "listenq-$version-image"; else echo "listenq-$version-image-$arch"; fi
}

image() {
    local context=target/image tag=localhost/listenq:$version-$arch file
    file=dist/$(image_name).tar
    rm -rf "$context" "$file"
    mkdir -p "$context"
    static_program
    install -m 755 "target/static/listenq-$arch" "$context/listenq"
    install -m 644 LICENSE "$context/LICENSE"
    licences "$context"
    # Sets no effective bit: with it the kernel would refuse to start the program in a container without these capabilities.
    setcap cap_sys_admin,cap_sys_ptrace,cap_dac_read_search+p "$context/listenq"
    buildah build --quiet --format oci --arch "$arch" --timestamp "$SOURCE_DATE_EPOCH" \
        --label org.opencontainers.image.title=listenq \
        --label org.opencontainers.image.version="$version" \
        --label org.opencontainers.image.revision="$LISTENQ_REVISION" \
        --label org.opencontainers.image.licenses=Apache-2.0 \
        --label org.opencontainers.image.source=https://github.com/listenq/listenq \
        --identity-label=false --tag "$tag" \
        --file deploy/image/Containerfile "$context"
    # buildah's own archive would contain the time of packing.
    rm -rf target/layout
    buildah push --quiet "$tag" "oci:target/layout:listenq:$version"
    archive target/layout . >"$file"
}

# Packages the chart with the Helm library that the checks use.
chart() {
    tests/chart.sh
    target/chart/venv/bin/python tests/chart/release.py dist
}

mkdir -p dist
if (($# == 0)); then
    set -- packages tarball image sbom
    [ "$compile" != env ] || set -- "$@" chart
fi
for what in "$@"; do
    case $what in
    packages | tarball | image | sbom | chart) "$what" ;;
    *)
        echo "not packages, tarball, image, sbom or chart: $what" >&2
        exit 64
        ;;
    esac
done
(cd dist && sha256sum listenq* >SHA256SUMS && cat SHA256SUMS)
