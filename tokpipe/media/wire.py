"""Messages between an actor and its decoding child: JSON, as pickle would be unsafe from a process
that reads hostile files. What may be long is passed in a file or in memory, by its descriptor."""

import json
import os
import socket
from typing import Any

_MAX_BYTES = 2**17


def send(channel: socket.socket, message: dict[str, Any], fd: int | None = None) -> None:
    """Send one message, with at most one descriptor, which stays open on this side."""
    socket.send_fds(channel, [json.dumps(message).encode()], [] if fd is None else [fd])


def receive(
    channel: socket.socket, timeout_s: float | None = None
) -> tuple[dict[str, Any], int | None]:
    """Return the next message and its descriptor, which the caller closes. Raises TimeoutError, or
    ConnectionError if the other side has hung up or sends nonsense."""
    channel.settimeout(timeout_s)
    body, fds, *_ = socket.recv_fds(channel, _MAX_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    try:
        return json.loads(body), fds[0] if fds else None
    except ValueError as error:  # nothing, after a hang-up
        for fd in fds:
            os.close(fd)
        raise ConnectionResetError from error
