"""A door before a Kafka-protocol broker that lets everybody in: it asks who is there, as Apache Kafka does (SASL).

PLAIN is RFC 4616, SCRAM-SHA-256 and SCRAM-SHA-512 are RFC 5802 and 7677, written from those, without the client's code.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

HANDSHAKE, API_VERSIONS, AUTHENTICATE = 17, 18, 36
"""The three requests that are answered to strangers."""
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_UNSUPPORTED_MECHANISM, _WRONG_STATE, _REFUSED = 33, 34, 58
_NUM_ITERATIONS = 4_096


class Refused(Exception):
    """Whoever is there is not who they say."""


class Plain:
    """One exchange of PLAIN: the name and the password, in the clear."""

    def __init__(self, passwords: Mapping[str, str]) -> None:
        self._passwords = passwords
        self.is_done = False

    def answer(self, said: bytes) -> bytes:
        _, name, password = said.decode().split("\0")
        if self._passwords.get(name) != password:
            raise Refused
        self.is_done = True
        return b""


class Scram:
    """One exchange of SCRAM: each side shows that it knows the password, and neither tells it."""

    def __init__(self, passwords: Mapping[str, str], mechanism: str, knows_it: bool) -> None:
        self._passwords, self._knows_it = passwords, knows_it
        self._hash = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}[mechanism]
        self._name, self._said_first, self._nonce = "", b"", b""
        self._salt = secrets.token_bytes(16)
        self.is_done = False

    def answer(self, said: bytes) -> bytes:
        return self._second(said) if self._nonce else self._first(said)

    def _first(self, said: bytes) -> bytes:
        header, bare = said[:3], said[3:]
        assert header == b"n,,"
        fields = _fields(bare)
        self._name = fields["n"].replace("=2C", ",").replace("=3D", "=")
        self._nonce = fields["r"].encode() + secrets.token_hex(12).encode()
        mine = b"r=%b,s=%b,i=%d" % (self._nonce, base64.b64encode(self._salt), _NUM_ITERATIONS)
        self._said_first = bare + b"," + mine
        return mine

    def _second(self, said: bytes) -> bytes:
        fields = _fields(said)
        if fields["r"].encode() != self._nonce or fields["c"] != "biws" or self._name not in self._passwords:
            raise Refused
        password = self._passwords[self._name].encode()
        salted = hashlib.pbkdf2_hmac(self._hash, password, self._salt, _NUM_ITERATIONS)
        told = self._said_first + b"," + said.rpartition(b",p=")[0]
        client_key = self._mac(salted, b"Client Key")
        signature = self._mac(hashlib.new(self._hash, client_key).digest(), told)
        proof = bytes(one ^ other for one, other in zip(client_key, signature, strict=True))
        if not hmac.compare_digest(proof, base64.b64decode(fields["p"])):
            raise Refused
        self.is_done = True
        server_key = self._mac(salted if self._knows_it else b"something else", b"Server Key")
        return b"v=" + base64.b64encode(self._mac(server_key, told))

    def _mac(self, key: bytes, data: bytes) -> bytes:
        return hmac.new(key, data, self._hash).digest()


def _fields(said: bytes) -> dict[str, str]:
    return {pair[0]: pair[2:] for pair in said.decode().split(",")}


class Door:
    """Lets those in who show that they know a password, and then hands on what they say.

    Attributes:
        passwords: By name; may be changed while it stands.
        num_let_in: Exchanges that ended well.
        num_refused: Exchanges that did not.
        num_strangers: Connections ended because something else was asked before who is there was known.
    """

    def __init__(
        self,
        port: int,
        listen_at: int,
        passwords: Mapping[str, str],
        mechanisms: Sequence[str],
        lifetime_ms: int,
        knows_passwords: bool,
    ) -> None:
        self.passwords, self._mechanisms, self._lifetime_ms = dict(passwords), mechanisms, lifetime_ms
        self._target, self._knows_passwords = port, knows_passwords
        self.num_let_in = self.num_refused = self.num_strangers = 0
        self._listener = socket.create_server(("127.0.0.1", listen_at))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            both = [
                threading.Thread(target=self._listen, args=(client, server), daemon=True),
                threading.Thread(target=_hand_back, args=(server, client), daemon=True),
            ]
            self._sockets += [client, server]
            self._threads += both
            for thread in both:
                thread.start()

    def _listen(self, client: socket.socket, server: socket.socket) -> None:
        exchange: Plain | Scram | None = None
        is_in = False
        with suppress(OSError):
            while frame := _read_frame(client):
                api, version, correlation = struct.unpack(">hhi", frame[4:12])
                # A correlation id is answered first; then come the fields behind the client's name.
                start = 14 + max(0, *struct.unpack(">h", frame[12:14]))
                if api == HANDSHAKE:
                    exchange, answer = self._greet(frame[start:])
                    is_in = False
                elif api == AUTHENTICATE:
                    is_in, answer = self._examine(exchange, version, frame[start:])
                elif is_in or api == API_VERSIONS:
                    server.sendall(frame)
                    continue
                else:
                    self._count("num_strangers")
                    break
                client.sendall(struct.pack(">ii", 4 + len(answer), correlation) + answer)
        for end in (client, server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _greet(self, body: bytes) -> tuple[Plain | Scram | None, bytes]:
        mechanism = body[2:].decode()
        is_known = mechanism in self._mechanisms
        names = b"".join(struct.pack(">h", len(one)) + one.encode() for one in self._mechanisms)
        answer = struct.pack(">hi", 0 if is_known else _UNSUPPORTED_MECHANISM, len(self._mechanisms)) + names
        if not is_known:
            return None, answer
        if mechanism == "PLAIN":
            return Plain(self.passwords), answer
        return Scram(self.passwords, mechanism, self._knows_passwords), answer

    def _examine(self, exchange: Plain | Scram | None, version: int, body: bytes) -> tuple[bool, bytes]:
        # From version 2 on, a header ends in its tags, and lengths are counted in seven bits a byte.
        said = _uncounted(body[1:]) if version >= 2 else body[4:]
        code, token, message = 0, b"", b""
        try:
            if exchange is None:
                code = _WRONG_STATE
            else:
                token = exchange.answer(said)
        except Refused:
            code, message = _REFUSED, b"Authentication failed"
            self._count("num_refused")
        is_in = exchange is not None and exchange.is_done
        if is_in:
            self._count("num_let_in")
        lifetime = struct.pack(">q", self._lifetime_ms)
        if version >= 2:
            counted = bytes([len(message) + 1]) + message + _counted(token)
            return is_in, b"\0" + struct.pack(">h", code) + counted + lifetime + b"\0"
        counted = struct.pack(">h", len(message)) + message + struct.pack(">i", len(token)) + token
        return is_in, struct.pack(">h", code) + counted + (lifetime if version == 1 else b"")

    def _count(self, name: str) -> None:
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)

    def cut(self) -> None:
        """Ends all connections; new ones are taken."""
        for end in list(self._sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()


def _hand_back(server: socket.socket, client: socket.socket) -> None:
    with suppress(OSError):
        while data := server.recv(65_536):
            client.sendall(data)
    for end in (server, client):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _read_frame(source: socket.socket) -> bytes:
    """Returns a request with its length before it; nothing at the end."""
    size = _read_exactly(source, 4)
    return size + _read_exactly(source, *struct.unpack(">i", size)) if size else b""


def _read_exactly(source: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        if not (more := source.recv(count - len(found))):
            return b""
        found += more
    return found


def _counted(data: bytes) -> bytes:
    count, digits = len(data) + 1, bytearray()
    while count > 0x7F:
        digits.append(count & 0x7F | 0x80)
        count >>= 7
    return bytes([*digits, count]) + data


def _uncounted(data: bytes) -> bytes:
    count = shift = used = 0
    while True:
        digit = data[used]
        count |= (digit & 0x7F) << shift
        shift, used = shift + 7, used + 1
        if not digit & 0x80:
            return data[used : used + count - 1]


@contextmanager
def door_to(
    port: int,
    passwords: Mapping[str, str],
    *,
    listen_at: int = 0,
    mechanisms: Sequence[str] = MECHANISMS,
    lifetime_ms: int = 0,
    knows_passwords: bool = True,
) -> Iterator[Door]:
    """A door before the broker at `port`.

    With a `lifetime_ms` who is in is asked again. Without `knows_passwords` it lets in whoever does, and cannot
    show that it does itself, as a false broker.
    """
    door = Door(port, listen_at, passwords, mechanisms, lifetime_ms, knows_passwords)
    try:
        yield door
    finally:
        door.close()
