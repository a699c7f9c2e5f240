"""Inside a sandbox: lets programs that speak only TCP reach a service's UNIX socket.

Arguments are ``PORT=SOCKET``. It listens on the sandbox's own loopback, goes to the
background once it does, and ends with the sandbox. Runs under the job's interpreter.
"""

import os
import socket
import sys
import threading


def copy(source, target):
    try:
        while True:
            data = source.recv(65536)
            if not data:
                break
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except (OSError, socket.error):
        for one in (source, target):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except (OSError, socket.error):
                pass


def connect(client, path):
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(path)
        back = threading.Thread(target=copy, args=(server, client))
        back.daemon = True
        back.start()
        copy(client, server)
        back.join()
    except (OSError, socket.error):
        pass
    finally:
        server.close()
        client.close()


def serve(listener, path):
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        thread = threading.Thread(target=connect, args=(client, path))
        thread.daemon = True
        thread.start()


def main(arguments):
    pairs = []
    for argument in arguments:
        port, _, path = argument.partition("=")
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(port)))
        listener.listen(64)
        pairs.append((listener, path))
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    threading.stack_size(256 * 1024)
    for listener, path in pairs[1:]:
        thread = threading.Thread(target=serve, args=(listener, path))
        thread.daemon = True
        thread.start()
    serve(*pairs[0])


if __name__ == "__main__":
    main(sys.argv[1:])
