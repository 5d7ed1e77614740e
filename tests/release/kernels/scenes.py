"""Servers and clients of the programme: every scene is a pair of processes in a network namespace of its own."""

import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
import time

libc = ctypes.CDLL(None, use_errno=True)
children = []


def write(path, text):
    with open(path, "w") as file:
        file.write(str(text))


def ip(*arguments):
    subprocess.run(["/sbin/ip", *arguments], check=True)


def add_netns(name):
    ip("netns", "add", name)
    ip("-n", name, "link", "set", "lo", "up")
    # SYN-ACKs to the addresses of a SYN flood leave through loopback and are lost.
    ip("-n", name, "route", "add", "10.9.0.0/16", "dev", "lo")


def enter(netns):
    fd = os.open(f"/run/netns/{netns}", os.O_RDONLY)
    if libc.setns(fd, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(fd)


def start(work, netns=None, cgroup=None):
    """Runs `work` in a process of its own, and returns its PID."""
    pid = os.fork()
    if pid:
        children.append(pid)
        return pid
    try:
        if cgroup:
            write(f"{cgroup}/cgroup.procs", 0)
        if netns:
            enter(netns)
        work()
    except BaseException as error:
        print(f"child in {netns}: {error!r}", flush=True)
    finally:
        os._exit(0)


def stop(pids):
    """Ends processes, including stopped ones."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        children.remove(pid)


def until(moment):
    time.sleep(max(0, moment - time.monotonic()))


MPTCP = 262


def listen(address, backlog, reuseport=False, v6only=None, defer=None, protocol=0):
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM, protocol)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuseport:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if v6only is not None:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    if defer:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, defer)
    server.bind(address)
    server.listen(backlog)
    return server


def listen_unix(name, backlog):
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen(backlog)
    return server


def connect(address, count, protocol=0):
    """Starts `count` connections, and returns their sockets without waiting."""
    if isinstance(address, tuple):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    else:
        family = socket.AF_UNIX
    clients = []
    for _ in range(count):
        client = socket.socket(family, socket.SOCK_STREAM, protocol)
        client.setblocking(False)
        client.connect_ex(address)
        clients.append(client)
    return clients


def accept_all(server, answer=b""):
    server.setblocking(False)
    while True:
        try:
            client = server.accept()[0]
        except BlockingIOError:
            return
        if answer:
            client.send(answer)
        client.close()


def serve_fast(server, end):
    """Accepts and closes every connection at once, until `end`."""
    while (left := end - time.monotonic()) > 0:
        if select.select([server], [], [], left)[0]:
            accept_all(server)


def serve_at(server, rate, end):
    """Accepts `rate` connections per second, until `end`."""
    while time.monotonic() < end:
        if select.select([server], [], [], max(0, end - time.monotonic()))[0]:
            server.accept()[0].close()
        time.sleep(1 / rate)


def serve_rounds(server, pause, end, answer=b""):
    """Accepts all waiting connections every `pause` seconds, until `end`."""
    while time.monotonic() < end:
        accept_all(server, answer)
        time.sleep(pause)


def burn(server, seconds, end):
    """Uses CPU time for each connection."""
    while time.monotonic() < end:
        client = server.accept()[0]
        stop_at = time.process_time() + seconds
        while time.process_time() < stop_at:
            pass
        client.close()


def allocate(server, size, end):
    """Holds memory, and uses more for each connection."""
    def touched():
        memory = bytearray(size)
        memory[::4096] = b"x" * len(memory[::4096])
        return memory

    held = touched()
    while time.monotonic() < end:
        client = server.accept()[0]
        touched()
        client.close()
    return held


def come(address, rate, patience, begin, end, protocol=0):
    """Connects `rate` clients per second between two times. Clients close after `patience` seconds; returns those that stay."""
    until(begin)
    waiting = []
    while (now := time.monotonic()) < end:
        waiting += [(now, connect(address, 1, protocol)[0])]
        while waiting and now - waiting[0][0] > patience:
            waiting.pop(0)[1].close()
        time.sleep(1 / rate)
    return waiting


def burst(address, count, hold, moments):
    """Connects clients at the same time, and closes them after `hold` seconds."""
    for moment in moments:
        until(moment)
        clients = connect(address, count)
        time.sleep(hold)
        for client in clients:
            client.close()


def wait_in_queue(address, count, begin, end):
    until(begin)
    clients = connect(address, count)
    until(end)
    return clients


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(number, port):
    """One SYN to a port of 127.0.0.1, from an address that no host has."""
    source = struct.pack("!I", 0x0A090001 + number)
    target = socket.inet_aton("127.0.0.1")
    tcp = struct.pack("!HHIIBBHHH", 20000 + number, port, 1000 * number, 0, 0x50, 2, 4096, 0, 0)
    total = checksum(source + target + struct.pack("!HH", 6, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", total) + tcp[18:]
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), number + 1, 0, 64, 6, 0, source, target)
    return header + tcp


def flood(port, count, rate, begin):
    until(begin)
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for number in range(count):
        raw.sendto(syn(number, port), ("127.0.0.1", 0))
        time.sleep(1 / rate)
    time.sleep(100)
