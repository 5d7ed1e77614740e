#!/usr/bin/env bash
# Runs every real server of tests/servers/table.txt in every situation, and every cause of causes.txt: installs the servers (root on
# Debian), prints both tables and writes docs/servers.md. Fails if a cell is wrong.
set -euo pipefail
cd "$(dirname "$0")/../.."

# In a container policy-rc.d prevents the services from starting.
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends \
    apache2 caddy default-jre-headless e2fsprogs gcc gunicorn haproxy libc6-dev lighttpd mariadb-server memcached mosquitto \
    nats-server nginx-light nodejs openssh-server pgbouncer php-fpm postfix postgresql puma python3-uvicorn redis-server \
    ruby socat squid stunnel4 systemd tomcat10 unicorn util-linux uvicorn uwsgi-core uwsgi-plugin-python3 varnish vsftpd >/dev/null

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export LISTENQ_SERVERS=${LISTENQ_SERVERS:-all} LISTENQ_SERVERS_OUT=$out
# Runs one table after the other, because their cells would slow each other down.
status=0
cargo test --locked --test servers -- --nocapture --test-threads 1 || status=$?

if [ "$LISTENQ_SERVERS" = all ] && [ -s "$out/servers.md" ] && [ -s "$out/causes.md" ]; then
    {
        sed "s|@KERNEL@|$(uname -r)|; s|@CPUS@|$(nproc)|; s|@DATE@|$(date -u +%F)|" tests/servers/page.md
        printf '\n## Diagnoses\n\n'
        cat "$out/servers.md"
        printf '\n## Causes\n\n'
        cat "$out/causes.md"
    } >docs/servers.md
fi
exit "$status"
