"""Servers that stop accepting for one reason each: `server.py MODE [ARGUMENT]`.

Prints the port once it listens. Every mode serves connections normally until its standard input gives a line; then it
gets into its trouble and stays there until it is killed.
"""

import ctypes
import os
import resource
import select
import socket
import struct
import sys
import threading
import time


def listen():
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", 0))
    server.listen(16)
    os.set_inheritable(server.fileno(), True)
    print(server.getsockname()[1], flush=True)
    return server


def serve_until_told(server):
    """Answers and closes every connection, until a line comes on standard input."""
    poll = select.epoll()
    poll.register(server, select.EPOLLIN)
    poll.register(0, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == 0:
                sys.stdin.readline()
                return poll
            client, _ = server.accept()
            client.sendall(b"ok\n")
            client.close()


def serve(server, _):
    """Never gets into trouble of its own: for causes that come from outside."""
    poll = serve_until_told(server)
    poll.unregister(0)
    while True:
        for _ in poll.poll():
            client, _ = server.accept()
            client.sendall(b"ok\n")
            client.close()


def resets(server, _):
    """Resets every connection at once, which leaves no row behind, and has another listener in its namespace."""
    other = socket.create_server(("127.0.0.1", 0))
    linger = struct.pack("ii", 1, 0)
    poll = select.epoll()
    poll.register(server, select.EPOLLIN)
    while other:
        for _ in poll.poll():
            client, _ = server.accept()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.close()


def burn(server, _):
    """Answers each connection after 50 ms of work on a processor."""
    poll = serve_until_told(server)
    poll.unregister(0)
    while True:
        for _ in poll.poll():
            client, _ = server.accept()
            until = time.process_time() + 0.05
            while time.process_time() < until:
                pass
            client.close()


def loop(server, _):
    """The accepting thread computes for ever."""
    serve_until_told(server)
    while True:
        pass


def lock(server, _):
    """Every thread waits for a lock that is never released."""
    serve_until_told(server)
    lock = threading.Lock()
    lock.acquire()
    threading.Thread(target=lock.acquire, daemon=True).start()
    lock.acquire()


def descriptors(server, _):
    """Keeps connections until it has used up its descriptors, as nginx does then: it looks away for a while."""
    poll = serve_until_told(server)
    poll.unregister(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
    kept = []
    while True:
        for _ in poll.poll():
            try:
                kept.append(server.accept())
            except OSError:
                poll.unregister(server)
                time.sleep(0.5)
                poll.register(server, select.EPOLLIN)


def limit(server, most):
    """Accepts at most `limit` connections at once, and does not watch the socket at that limit."""
    poll = serve_until_told(server)
    poll.unregister(0)
    kept = []
    while len(kept) < int(most):
        poll.poll()
        kept.append(server.accept())
    poll.unregister(server)
    while True:
        poll.poll(1)


def workers(server, work):
    """Four workers behind a master that holds the socket and waits for them."""
    serve_until_told(server)
    for _ in range(4):
        if os.fork() == 0:
            while True:
                client, _ = server.accept()
                work(client)
    while True:
        os.wait()


def waits(server, address):
    """Workers that ask another server, which never answers."""
    host, port = address.rsplit(":", 1)

    def ask(_):
        with socket.create_connection((host, int(port))) as database:
            database.sendall(b"?")
            database.recv(1)

    workers(server, ask)


def idle(server, _):
    """Workers that read from clients who say nothing."""
    workers(server, lambda client: client.recv(1))


def leak(server, _):
    """A child inherits the socket and does something else; the parent ends."""
    serve_until_told(server)
    if os.fork() == 0:
        while True:
            time.sleep(3600)
    os._exit(0)


def disk(server, _):
    """State D: a parent in vfork(2) until its child ends."""
    serve_until_told(server)
    libc = ctypes.CDLL(None)
    if libc.vfork() == 0:
        # Its descriptors are its own: the parent alone holds the socket.
        server.close()
        libc.pause()


def single(server, _):
    """A healthy worker thread pool: one thread accepts, three wait on a futex for work."""
    event = threading.Event()
    for _ in range(3):
        threading.Thread(target=event.wait, daemon=True).start()
    serve(server, None)


if __name__ == "__main__":
    modes = [serve, resets, burn, loop, lock, descriptors, limit, waits, idle, leak, disk, single]
    mode = {mode.__name__: mode for mode in modes}[sys.argv[1]]
    mode(listen(), sys.argv[2] if len(sys.argv) > 2 else None)
