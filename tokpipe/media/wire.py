"""Messages between an actor and its decoding child: JSON, sometimes with a file descriptor.

Pickle would be unsafe, because the child reads hostile files.
"""

import json
import os
import socket
import struct
import time
from typing import Any

_LENGTH = struct.Struct("<Q")
# The longest valid message lists the times of a clip; more than this is a broken peer.
_MAX_BYTES = 2**28


class Closed(Exception):
    """The other side has hung up."""


def send(channel: socket.socket, message: dict[str, Any], fd: int | None = None) -> None:
    """Send one message, with at most one descriptor, which stays open on this side."""
    body = json.dumps(message).encode()
    try:
        socket.send_fds(channel, [_LENGTH.pack(len(body))], [] if fd is None else [fd])
        channel.sendall(body)
    except (BrokenPipeError, ConnectionError) as error:
        raise Closed from error


def receive(
    channel: socket.socket, deadline: float | None = None
) -> tuple[dict[str, Any], int | None]:
    """Return the next message and its descriptor, which the caller closes.

    Raises:
        TimeoutError: no complete message by ``deadline`` (in ``time.monotonic`` seconds).
        Closed: the other side has hung up.
    """
    fds: list[int] = []
    try:
        (size,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size, deadline, fds))
        if size > _MAX_BYTES:
            raise Closed
        message: dict[str, Any] = json.loads(_exactly(channel, size, deadline, fds))
    except BaseException as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, ConnectionError | json.JSONDecodeError):
            raise Closed from error
        raise
    return message, fds[0] if fds else None


def _exactly(channel: socket.socket, size: int, deadline: float | None, fds: list[int]) -> bytes:
    """Return ``size`` bytes, and add the first descriptor that comes with them to ``fds``."""
    received = bytearray()
    while len(received) < size:
        left_s = None if deadline is None else deadline - time.monotonic()
        if left_s is not None and left_s <= 0:
            raise TimeoutError
        channel.settimeout(left_s)
        most = min(size - len(received), 2**20)
        part, new_fds, *_ = socket.recv_fds(channel, most, 1 - len(fds), socket.MSG_CMSG_CLOEXEC)
        fds += new_fds
        if not part:
            raise Closed
        received += part
    return bytes(received)
