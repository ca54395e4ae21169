"""Messages between an actor and its decoding child: JSON, sometimes with a file descriptor.

Pickle would be unsafe, because the child reads hostile files.
"""

from __future__ import annotations

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
    fd: int | None = None
    try:
        _limit(channel, deadline)
        head, fds, _, _ = socket.recv_fds(channel, _LENGTH.size, 1, socket.MSG_CMSG_CLOEXEC)
        fd = fds[0] if fds else None
        head += _receive_exactly(channel, _LENGTH.size - len(head), deadline)
        (size,) = _LENGTH.unpack(head)
        if size > _MAX_BYTES:
            raise Closed
        message: dict[str, Any] = json.loads(_receive_exactly(channel, size, deadline))
    except BaseException as error:
        if fd is not None:
            os.close(fd)
        if isinstance(error, ConnectionError | json.JSONDecodeError):
            raise Closed from error
        raise
    return message, fd


def _receive_exactly(channel: socket.socket, size: int, deadline: float | None) -> bytes:
    parts = []
    while size:
        _limit(channel, deadline)
        part = channel.recv(min(size, 2**20))
        if not part:
            raise Closed
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _limit(channel: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        channel.settimeout(None)
        return
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    channel.settimeout(left_s)
