"""A real service in a process of its own, and senders of cases on real sockets."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import zmq

from ipc.child import STOP
from ipc.codec import decode_to_client, encode
from ipc.errors import MalformedMessage
from ipc.messages import IDENTITY_BYTES, Hello, Message, Ready, Statistics, Stats, ToClient
from ipc.settings import EngineSettings, ModelSettings, WorkerSettings
from ipc.sockets import connect_dealer, make_run_directory, receive_parts, remove_run_directory
from tests.end_to_end.running_server import wait_until
from tests.fuzz.broken import make_broken
from tests.fuzz.frames import World, is_malformed, make_case

LIMIT = 60.0  # seconds for anything but a whole run
SYNC = 0x2BADC0FFEE0DDF00  # request id of our own questions: no case has it
KEEP_NO_SHAPES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}  # what torch keeps for each shape of a batch is no leak
VOCABULARY = 30_524  # of tests.engine.checkpoints


class Service:
    """`python -m scorer_worker` or `python -m engine`, as the launcher starts them, with a small model.

    Args:
        module: "scorer_worker", which then hosts the encoder too, or "engine".
        model: a checkpoint of tests.engine.checkpoints, of dim 8.
    """

    def __init__(self, module: str, model: Path) -> None:
        self.module = module
        self.directory = make_run_directory()
        self.address = f"ipc://{self.directory}/service.sock"
        spec = ModelSettings(str(model))
        running = str(self.directory / "running")
        settings = (
            EngineSettings(self.address, running, spec)
            if module == "engine"
            else WorkerSettings(self.address, running, spec, hosts_encoder=True, cache_bytes=8 * 2**20)
        )
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            env={**os.environ, **KEEP_NO_SHAPES},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(settings) + b"\n")
        self.process.stdin.flush()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if b'"Alive"' not in line:
                self.lines.append(line.decode(errors="replace").rstrip("\n"))

    def wait_up(self) -> None:
        wait_until(lambda: any('"Up"' in line for line in self.lines) or self.process.poll() is not None)
        assert self.process.poll() is None, self.log

    @property
    def log(self) -> str:
        return "\n".join(self.lines[-50:])

    def forget_peak(self) -> None:
        """VmHWM is the most from now on."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes; VmHWM is the most there has been, or since `forget_peak`."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(field + ":"))

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def stop(self) -> int:
        """As the launcher does, on the lifeline.

        Returns:
            The exit code.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(STOP)
        self.process.stdin.close()
        try:
            code = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        self.process.stdout.close()
        remove_run_directory(self.directory)
        return code


class Sender:
    """A client that says what it likes. Its answers are read, so that it is not dropped for a full pipe."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, identity: bytes | None = None) -> None:
        self.identity = identity or secrets.token_bytes(IDENTITY_BYTES)
        self._socket = connect_dealer(context, address, self.identity)
        self._socket.setsockopt(zmq.SNDTIMEO, int(LIMIT * 1000))
        self.answers = 0
        self.malformed_answers: list[str] = []

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close(0)

    def send(self, parts: Sequence[bytes]) -> None:
        """Waits while the service has not taken what was sent before."""
        self._socket.send_multipart(parts)

    def say(self, message: Message) -> None:
        self.send([bytes(memoryview(part).cast("B")) for part in encode(message)])

    def read(self) -> list[ToClient]:
        """Everything that has come; none of it is malformed."""
        messages = []
        while (parts := receive_parts(self._socket)) is not None:
            self.answers += 1
            try:
                messages.append(decode_to_client(parts)[0])
            except MalformedMessage as error:
                self.malformed_answers.append(str(error))
        return messages

    def ready(self) -> Ready:
        """What the service says of itself."""
        answer = self._ask(Hello(1), lambda message: isinstance(message, Ready))
        assert isinstance(answer, Ready)
        return answer

    def statistics(self) -> dict[str, float]:
        """The service's counters, after everything that was sent here before has been taken."""
        self.say(Hello(1))
        answer = self._ask(Stats(SYNC), lambda message: isinstance(message, Statistics) and message.request_id == SYNC)
        assert isinstance(answer, Statistics)
        return answer.values

    def _ask(self, message: Message, is_answer: Callable[[ToClient], bool]) -> ToClient:
        self.say(message)
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            self._socket.poll(1000)
            for answer in self.read():
                if is_answer(answer):
                    return answer
        raise AssertionError(f"no answer to {message} within {LIMIT} s")


def send_cases(service: Service, world: World, seed: int, count: int) -> dict[str, Any]:
    """Cases from several clients to a service, and what became of them.

    Of some it is known that they are malformed; the others are also decoded here. So many are, and so many more has the
    service counted.
    """
    choose = random.Random(seed)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    senders = [Sender(context, service.address) for _ in range(3)]
    stranger = Sender(context, service.address, b"short")  # whatever it says is malformed
    malformed = 0
    started = time.monotonic()
    try:
        world.epoch = senders[0].ready().epoch
        before = senders[0].statistics()["malformed_messages"]
        for number in range(count):
            is_broken = choose.random() < 0.3
            parts = make_broken(choose, world) if is_broken else make_case(choose, world)
            if number % 500 == 7:
                stranger.send(parts)
                malformed += 1
                continue
            malformed += is_broken or is_malformed(parts)
            sender = choose.choice(senders)
            sender.send(parts)
            if number % 64 == 0:
                for each in senders:
                    each.read()
        values = _settle(senders, stranger, before + malformed)
        answers = sum(sender.answers for sender in senders)
        wrong = [error for sender in senders for error in sender.malformed_answers]
    finally:
        for sender in (*senders, stranger):
            sender.close()
        context.term()
    return {
        "cases": count,
        "malformed": malformed,
        "counted": int(values["malformed_messages"] - before),
        "answers": answers,
        "malformed_answers": wrong,
        "seconds": round(time.monotonic() - started, 1),
    }


def _settle(senders: Sequence[Sender], stranger: Sender, expected: float) -> dict[str, float]:
    """The counters, once all that was sent has been taken: what the stranger said too, whom nobody answers."""
    end = time.monotonic() + LIMIT
    while True:
        values = [sender.statistics() for sender in senders][-1]
        if values["malformed_messages"] >= expected or time.monotonic() > end:
            return values
