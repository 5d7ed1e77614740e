#!/usr/bin/env bash
# Pushes the image of both architectures as one manifest list, and the chart as an OCI artifact, from dist/, and signs both.
# Needs buildah, helm and cosign. Usage: deploy/publish.sh VERSION
# Environment: REGISTRY such as ghcr.io/listenq, REGISTRY_USER, REGISTRY_PASSWORD, LATEST=yes for the tag `latest` too;
# COSIGN=no skips the signatures.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$1
image=$REGISTRY/listenq
host=${REGISTRY%%/*}
list=listenq-$version

buildah login --username "$REGISTRY_USER" --password-stdin "$host" <<<"$REGISTRY_PASSWORD"
buildah manifest create "$list"
for archive in "dist/listenq-$version-image.tar" "dist/listenq-$version-image-arm64.tar"; do
    buildah manifest add "$list" "oci-archive:$archive"
done
tags=("$version")
mkdir -p target
if [ "${LATEST:-no}" = yes ]; then tags+=(latest); fi
for tag in "${tags[@]}"; do
    buildah manifest push --all --digestfile target/image.digest "$list" "docker://$image:$tag"
done

helm registry login "$host" --username "$REGISTRY_USER" --password-stdin <<<"$REGISTRY_PASSWORD"
helm push "dist/listenq-$version.tgz" "oci://$REGISTRY/charts" 2>&1 | tee target/chart.push
chart=$(sed -n 's/^Digest: //p' target/chart.push)

if [ "${COSIGN:-yes}" = yes ]; then
    cosign login "$host" --username "$REGISTRY_USER" --password-stdin <<<"$REGISTRY_PASSWORD"
    cosign sign --yes "$image@$(cat target/image.digest)" "$REGISTRY/charts/listenq@$chart"
fi
