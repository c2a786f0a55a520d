"""a real server on 127.0.0.1 that does what a test's script says, byte by byte"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn


@dataclass
class Request:
    """What one request said."""

    line: str
    headers: dict[str, str]
    body: bytes
    number: int  # from 0, over all connections
    connection: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Server:
    """Where it listens, and what it has got."""

    host: str
    port: int
    requests: list[Request] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # monotonic, one per request
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/score"


Script = Callable[[Request, socket.socket, Server], None]


def answer(connection: socket.socket, body: Any, status: str = "200 OK", **headers: str) -> None:
    """A whole answer; keyword arguments are headers, with underscores for dashes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Content-Type": "application/json", "Content-Length": str(len(raw))}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    connection.sendall(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + raw)


def drip(connection: socket.socket, raw: bytes, server: Server, pause_s: float = 0.05) -> None:
    """The bytes one by one, until they are sent or nobody listens."""
    for index in range(len(raw)):
        if server.stopping.wait(pause_s):
            return
        connection.sendall(raw[index : index + 1])


def hang_up(connection: socket.socket) -> NoReturn:
    """Closes the connection after what was sent; ends the script."""
    raise ConnectionAbortedError


def reset(connection: socket.socket) -> NoReturn:
    """Breaks the connection off without a farewell; ends the script."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise ConnectionAbortedError


@contextmanager
def serving(script: Script, *, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server that calls the script once per request, connections kept open until the script closes them."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server("127.0.0.1", listener.getsockname()[1])
    open_connections: list[socket.socket] = []
    lock = threading.Lock()

    def serve(connection: socket.socket, number: int) -> None:
        with suppress(OSError, ValueError), connection:
            stream = tls.wrap_socket(connection, server_side=True) if tls else connection
            with stream, stream.makefile("rb") as file:
                while request := _read(file, number):
                    with lock:
                        request.number = len(server.requests)
                        server.requests.append(request)
                        server.times.append(time.monotonic())
                    script(request, stream, server)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_connections.append(connection)
                threading.Thread(target=serve, args=(connection, len(open_connections)), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopping.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in open_connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _read(file: Any, connection: int) -> Request | None:
    line = file.readline().decode().strip()
    if not line:
        return None
    headers = {}
    while text := file.readline().decode().strip():
        name, _, value = text.partition(":")
        headers[name.lower()] = value.strip()
    body = file.read(int(headers.get("content-length", 0)))
    return Request(line, headers, body, 0, connection)


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def certificate(folder: Path, host: str, *, valid: bool = True) -> ssl.SSLContext:
    """A server's TLS with a certificate that it signed itself, also left as `folder/cert.pem`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now + timedelta(days=1 if valid else -1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context
