"""ZeroMQ sockets as this project wants them, and the private directory they live in.

Only `ipc://` in a fresh 0700 directory: nothing listens on a network (lesson of CVE-2025-30202 and its family).
High-water marks are finite, so that a slow reader is noticed instead of filling the memory; LINGER is 0, so that
closing never waits.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import zmq

from ipc.arrays import Buffer
from ipc.errors import MalformedMessage
from ipc.messages import MAX_MESSAGE_BYTES

RUN_DIRECTORY_PREFIX = "maxsimd-"
HIGH_WATER_MARK = 4096  # messages; credits keep well below it
MAX_FRAMES = 4096
NO_WAIT = int(zmq.NOBLOCK)  # plain numbers: a flag that is an enum costs as much as what it is for
NO_WAIT_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
COPY_BELOW = 65_536  # bytes: smaller frames are cheaper to copy than to track


def make_run_directory() -> Path:
    """A fresh directory, readable by this user only, for the sockets of one launch."""
    return Path(tempfile.mkdtemp(prefix=RUN_DIRECTORY_PREFIX))  # mkdtemp makes it 0700


def remove_run_directory(directory: Path) -> None:
    """Remove the sockets of a launch that has ended. Missing files are fine; a directory that was not made by
    `make_run_directory` is left alone.
    """
    if directory.name.startswith(RUN_DIRECTORY_PREFIX):
        shutil.rmtree(directory, ignore_errors=True)


def bind_router(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """The socket of a service.

    HANDOVER: a client that reconnects under its identity takes its route over. MANDATORY: a send to somebody who has
    gone raises EHOSTUNREACH instead of vanishing. Sends must be NOBLOCK. No HEARTBEAT: with it libzmq 4.3.5 ends the
    process ("Assertion failed: !_io_error") when a route was taken over from a connection that is still open.

    Raises:
        ValueError: the address is not `ipc://`.
    """
    _check_address(address)
    socket = context.socket(zmq.ROUTER)
    _set_common_options(socket)
    socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.bind(address)
    return socket


def connect_dealer(context: zmq.Context[zmq.Socket[bytes]], address: str, identity: bytes) -> zmq.Socket[bytes]:
    """The socket of a client. IMMEDIATE: nothing queues for a service that is not there.

    Args:
        identity: 16 random bytes of this process start. A reused one would receive its predecessor's answers.
    """
    _check_address(address)
    socket = context.socket(zmq.DEALER)
    _set_common_options(socket)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    socket.setsockopt(zmq.IDENTITY, identity)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
    socket.connect(address)
    return socket


def receive_parts(socket: zmq.Socket[bytes]) -> list[memoryview] | None:
    """One multipart message without copying its frames, or None if there is none now.

    Raises:
        MalformedMessage: too many frames; the message has been taken off the socket.
    """
    try:
        frame = socket.recv(NO_WAIT, copy=False)
    except zmq.Again:
        return None
    parts = [frame.buffer]
    count = 1
    while frame.more:
        frame = socket.recv(NO_WAIT, copy=False)
        count += 1
        if count <= MAX_FRAMES:
            parts.append(frame.buffer)
    if count > MAX_FRAMES:
        raise MalformedMessage(f"{count} frames, at most {MAX_FRAMES}")
    return parts


def send_parts(socket: zmq.Socket[bytes], parts: Sequence[Buffer]) -> None:
    """One multipart message, without waiting.

    Raises:
        zmq.Again, zmq.ZMQError: nothing of it was sent.
    """
    last = len(parts) - 1
    for index, part in enumerate(parts):
        flags = NO_WAIT_MORE if index < last else NO_WAIT
        socket.send(part, flags, copy=memoryview(part).nbytes < COPY_BELOW)


def _set_common_options(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)


def _check_address(address: str) -> None:
    if not address.startswith("ipc:///"):
        raise ValueError(f"address: {address!r}, expected ipc:// with an absolute path")
