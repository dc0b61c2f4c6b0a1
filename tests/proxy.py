"""A TCP proxy between a client and a server of a test, with faults on demand."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK_BYTES = 65_536
_GREETING_S = 10.0


class Proxy:
    """Forwards bytes both ways. `swallow(n)` cuts the next n connections at their next answer, which never arrives.

    `cut` ends all connections, and new ones at once, until `mend`.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, listen_at: int = 0) -> None:
        """With `tls` the client's side is encrypted, the server's is not."""
        self._target, self._tls = port, tls
        self._listener = socket.create_server(("127.0.0.1", listen_at))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._to_swallow = 0
        self.num_swallowed = 0
        self._is_open = True
        self._is_cut = False
        self._sockets: list[socket.socket] = []
        self._ended: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def swallow(self, num_answers: int) -> None:
        with self._lock:
            self._to_swallow = num_answers

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            ends, self._sockets = self._sockets, []
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ended += ends

    def mend(self) -> None:
        with self._lock:
            self._is_cut = False

    def _accept(self) -> None:
        while self._is_open:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._connect, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _connect(self, client: socket.socket) -> None:
        """Greets a client, in a thread of its own: one that is slow to answer holds up nobody else."""
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
                client.settimeout(_GREETING_S)
                client.do_handshake()
                client.settimeout(None)
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        with self._lock:
            is_cut = self._is_cut or not self._is_open
            if not is_cut:
                self._sockets += [client, server]
        if is_cut:
            client.close()
            server.close()
            return
        answers = threading.Thread(target=self._forward, args=(server, client, True), daemon=True)
        self._threads.append(answers)
        answers.start()
        self._forward(client, server, False)

    def _forward(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                if is_answer and self._takes_this_one():
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _takes_this_one(self) -> bool:
        with self._lock:
            if not self._to_swallow:
                return False
            self._to_swallow -= 1
            self.num_swallowed += 1
            return True

    def close(self) -> None:
        with self._lock:
            self._is_open = False
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for end in list(self._sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._sockets + self._ended:
            end.close()


@contextmanager
def proxy_to(port: int, tls: ssl.SSLContext | None = None, listen_at: int = 0) -> Iterator[Proxy]:
    proxy = Proxy(port, tls, listen_at)
    try:
        yield proxy
    finally:
        proxy.close()
