"""An API server's process: `python -P -m frontend.api_server`, started by the launcher.

Settings on stdin, status on stdout, connections over an inherited socket. It never imports torch: libtorch and libcuda
are not even mapped into it (promise P2).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys

import msgspec
import uvloop

from frontend.admission import Admission
from frontend.app import create_app
from frontend.app_config import AppConfig
from frontend.connections import LauncherLink
from frontend.http_server import HttpServer
from frontend.metrics import Metrics
from frontend.reranker import Reranker
from frontend.tls import TlsSettings, make_context
from frontend.version import VERSION
from ipc.child import Child, Pulse, Up, ignore_stop_signals
from ipc.client import Service, ServiceClient
from ipc.collector import settle_collector

BODIES_BYTES = 24 * 2**20  # of request bodies at once, beyond a single one: this process's memory under load
BEAT = 0.5  # seconds
SWITCH_SECONDS = 0.0005  # that the event loop waits for a thread which decodes embeddings or joins token ids

_log = logging.getLogger("maxsimd.api_server")


class ApiServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of one API server process."""

    slot: int
    channel: int  # descriptor of the pair to the launcher
    worker_address: str
    engine_address: str | None  # None: the worker hosts the encoder, or there is none
    secret: bytes  # of this launch: keys of texts are keyed with it
    threads: int
    app: AppConfig
    tls: TlsSettings | None = None
    shutdown_timeout: float = 30.0
    log_level: str = "info"


def main() -> int:
    """Serve until the launcher says stop, or has gone."""
    ignore_stop_signals()
    child = Child("maxsimd-api")
    settings = child.read_settings(ApiServerSettings)
    child.rename(f"maxsimd-api-{settings.slot}")
    logging.basicConfig(
        level=settings.log_level.upper(),
        format=f"api server {settings.slot}: %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    sys.setswitchinterval(SWITCH_SECONDS)
    uvloop.run(_ApiServer(child, settings).run())
    return 0


class _ApiServer:
    """One process's parts, and their order of start and stop."""

    def __init__(self, child: Child, settings: ApiServerSettings) -> None:
        self._child = child
        self._settings = settings
        self._is_draining = False
        self._stop = asyncio.Event()
        self._admission = Admission(max(BODIES_BYTES, settings.app.max_body_bytes))
        self._opening: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        settings = self._settings
        loop = asyncio.get_running_loop()
        self._worker = ServiceClient("worker", settings.worker_address, self._on_worker)
        self._engine = (
            ServiceClient("engine", settings.engine_address, self._on_engine) if settings.engine_address else None
        )
        self._reranker = Reranker(self._worker, self._engine, settings.threads)
        metrics = Metrics(settings.slot)
        app = create_app(
            settings.app, self._reranker, self._admission, settings.secret, lambda: self._is_draining, metrics
        )
        tls = None if settings.tls is None else make_context(settings.tls)
        self._http = HttpServer(app, f"maxsimd/{VERSION}", tls)
        await self._worker.start()
        if self._engine is not None:
            await self._engine.start()
        channel = socket.socket(fileno=settings.channel)
        channel.setblocking(False)
        self._link = LauncherLink(channel, self._open, self._drain, self._stop.set)
        loop.add_reader(channel.fileno(), self._link.receive)
        loop.add_reader(self._child.lifeline, self._check_lifeline)
        settle_collector()
        self._child.report(Up())
        housekeeping = asyncio.create_task(self._keep_house(), name="housekeeping")
        await self._stop.wait()
        # the worker goes with the launcher: nothing that runs can be finished then
        busy = await self._http.drain(settings.shutdown_timeout, lambda: self._child.is_abandoned)
        if busy and not self._child.is_abandoned:
            _log.warning("%d requests were not done within --shutdown-timeout", busy)
        housekeeping.cancel()
        await asyncio.gather(housekeeping, return_exceptions=True)
        loop.remove_reader(channel.fileno())
        channel.close()
        await self._worker.close()
        if self._engine is not None:
            await self._engine.close()
        self._reranker.close()

    def _on_worker(self, service: Service) -> None:
        if service.ready.hosts_encoder:
            self._reranker.take_model(service)

    def _on_engine(self, service: Service) -> None:
        self._reranker.take_model(service)

    def _open(self, connection_id: int, connection: socket.socket) -> None:
        task = asyncio.create_task(self._http.serve(connection, lambda: self._link.closed(connection_id)))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _drain(self) -> None:
        self._is_draining = True

    def _check_lifeline(self) -> None:
        """The launcher has gone, or wants a server that is not up yet to stop."""
        if self._child.is_to_stop():
            asyncio.get_running_loop().remove_reader(self._child.lifeline)
            self._is_draining = True
            self._stop.set()

    async def _keep_house(self) -> None:
        """Sign of life, Date header, credits to admission, and the one line to the launcher when the services are
        there.
        """
        pulse = Pulse(self._child)
        is_told = False
        while True:
            pulse.beat()
            self._http.refresh_date()
            self._link.say_what_is_left()
            encoder = self._engine or self._worker
            if encoder.service is not None and encoder.service.ready.hosts_encoder:
                self._admission.capacity_tokens = encoder.service.ready.credits.tokens
            if not is_told and self._reranker.is_ready:
                is_told = True
                self._child.report(Up({"services": "ready"}))
            await asyncio.sleep(BEAT if is_told else BEAT / 10)


if __name__ == "__main__":
    sys.exit(main())
