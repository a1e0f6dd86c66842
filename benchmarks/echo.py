"""What ZeroMQ and this machine's scheduler take alone: the frames of a small Score there, and of its answer back."""

from __future__ import annotations

import asyncio
import multiprocessing
from types import TracebackType

import zmq

from ipc.sockets import make_run_directory, remove_run_directory

ASKED = [bytes(60), bytes(176)]
ANSWERED = [bytes(60), bytes(40), bytes(44), bytes(44)]
SECONDS = 30.0  # a process that starts imports first


class Echo:
    """A process that answers, and looks at nothing; as a context manager."""

    def __enter__(self) -> Echo:
        self._directory = make_run_directory()
        self.address = f"ipc://{self._directory}/echo"
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_answer_all, args=(self.address,), daemon=True)
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()
        remove_run_directory(self._directory)


class EchoClient:
    """Asks an `Echo`, one thing at a time, on the running event loop."""

    def __init__(self, address: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.connect(address)
        self._descriptor = int(self._socket.getsockopt(zmq.FD))
        self._loop = asyncio.get_running_loop()
        self._answer: asyncio.Future[list[bytes]] = self._loop.create_future()
        self._loop.add_reader(self._descriptor, self._take)

    async def ask(self) -> None:
        """
        Raises:
            TimeoutError: there is no answer.
        """
        self._answer = self._loop.create_future()
        self._socket.send_multipart(ASKED)
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:  # a send may have swallowed the edge
            self._take()
        async with asyncio.timeout(SECONDS):
            await self._answer

    def close(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._socket.close(0)

    def _take(self) -> None:
        try:
            answer = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if not self._answer.done():  # else nobody waits for it any more
            self._answer.set_result(answer)


def _answer_all(address: str) -> None:
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(address)
    while True:
        socket.poll()
        identity, *_ = socket.recv_multipart()
        socket.send_multipart([identity, *ANSWERED])
