"""Many servers that accept nothing: COUNT processes with a listener and THREADS threads each. Prints the ports, and ends with its
standard input."""

import os
import socket
import sys
import threading

COUNT, THREADS = int(sys.argv[1]), int(sys.argv[2])


def serve():
    """Waits with all threads until the test ends."""
    threading.stack_size(65536)
    lock = threading.Lock()
    lock.acquire()
    for _ in range(THREADS - 1):
        threading.Thread(target=lock.acquire, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


ports = []
for _ in range(COUNT):
    listener = socket.create_server(("127.0.0.1", 0), backlog=4)
    ports.append(listener.getsockname()[1])
    if os.fork() == 0:
        serve()
    listener.close()
print(*ports, flush=True)
sys.stdin.read()
