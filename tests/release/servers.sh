#!/usr/bin/env bash
# Every real server of tests/servers/table.txt in every situation: installs them (root on Debian), prints the matrix.
set -euo pipefail
cd "$(dirname "$0")/../.."

# In a container policy-rc.d keeps the services from starting.
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends \
    apache2 caddy default-jre-headless gcc gunicorn haproxy libc6-dev lighttpd mariadb-server memcached mosquitto \
    nats-server nginx-light nodejs openssh-server pgbouncer php-fpm postfix postgresql puma python3-uvicorn redis-server \
    ruby socat squid stunnel4 systemd tomcat10 unicorn uvicorn uwsgi-core uwsgi-plugin-python3 varnish vsftpd >/dev/null
LISTENQ_SERVERS=${LISTENQ_SERVERS:-all} cargo test --locked --test servers -- --nocapture
