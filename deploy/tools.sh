#!/usr/bin/env bash
# Installs the tools that deploy/build.sh, tests/release/packages.sh and tests/release/image.sh need (root on Debian 12).
set -euo pipefail

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends \
    buildah ca-certificates curl gcc gcc-aarch64-linux-gnu git iproute2 libc6-dev libc6-dev-arm64-cross libcap2-bin lintian man-db \
    mmdebstrap python3 python3-pip python3-venv rpm rpmlint runc skopeo systemd umoci >/dev/null
# Another Node.js than Debian's conflicts with Debian's npm.
command -v npm >/dev/null || apt-get install -y -qq --no-install-recommends nodejs npm >/dev/null
for crate in cargo-deb cargo-generate-rpm; do
    command -v "$crate" >/dev/null || cargo install --quiet --locked "$crate"
done
