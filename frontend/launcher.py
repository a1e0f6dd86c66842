"""The launcher: owns the listening socket and the child processes, and nothing else.

Start: bind (a port in use ends it at once), start worker, engine and API servers side by side, accept as soon as one
API server is up (so that /live and /ready answer while the model loads), say when everything is ready.

Stop (P8): /ready turns false; after --drain-delay accepting stops; API servers finish what runs; after the last of them
the lifelines of engine and worker are closed. A second signal stops at once. If the launcher itself is killed, EOF on
the lifelines ends every child.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from frontend import malloc
from frontend.api_server import ApiServerSettings
from frontend.app_config import app_config
from frontend.config import ServeConfig, model_settings
from frontend.connections import DRAIN, STOP, Dispatcher, ServerLink, make_pair
from frontend.device import find_device
from frontend.division import count_cores, divide_cores, thread_environment
from frontend.listener import Listener, ListenError
from frontend.options import ConfigError
from frontend.run_directory import RunDirectory
from frontend.spare import Spare
from frontend.supervisor import Launch, StartFailed, Supervisor, start_new
from frontend.tls import TlsSettings
from ipc.settings import EngineSettings, WorkerSettings

RETRY_INTERVAL = 0.2  # seconds between offers of connections that nobody could take
SERVICE_STOP_TIMEOUT = 10.0  # seconds for worker and engine to end once nobody needs them

HORIZON_SHARE = (
    0.7  # of --request-timeout: the encoding work that may be outstanding, so that what is let in is finished (P7)
)

_log = logging.getLogger("maxsimd.launcher")


def run(config: ServeConfig) -> int:
    """Serve until a signal.

    Returns:
        The exit code: 0 after a clean stop, 1 if a process could not be kept running, 2 for wrong settings.
    """
    logging.basicConfig(level=config.log_level.upper(), format="maxsimd: %(levelname)s %(message)s", stream=sys.stderr)
    try:
        tls = config.read_tls()
        listener = Listener(
            config.host, config.port, config.uds, int(config.uds_mode, 8), "http" if tls is None else "https"
        )
    except (ConfigError, ListenError) as error:
        print(f"maxsimd: {error}", file=sys.stderr)
        return 2
    try:
        return asyncio.run(_Launcher(config, listener, tls).main())
    finally:
        listener.close()


class _Launcher:
    """One launch."""

    def __init__(self, config: ServeConfig, listener: Listener, tls: TlsSettings | None) -> None:
        self._config = config
        self._listener = listener
        self._tls = tls
        self._has_model = not config.no_engine
        self._device = find_device(config.device)
        self._hosts_encoder = self._has_model and _hosts_encoder(config.engine_placement, self._device)
        self._has_engine = self._has_model and not self._hosts_encoder
        self._division = divide_cores(
            count_cores(), config.api_server_count, self._has_model, uses_cuda=self._device == "cuda"
        )
        self._run = RunDirectory()
        self._run_directory = self._run.path
        self._secret = secrets.token_bytes(32)
        self._dispatcher = Dispatcher()
        self._ends: dict[int, tuple[socket.socket, socket.socket]] = {}  # by slot: our end and the child's
        self._summaries: dict[str, dict[str, str]] = {}
        self._ready_slots: set[int] = set()
        self._fingerprints: dict[str, str] = {}
        self._signals = 0
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._is_announced = False
        self._is_draining = False
        self._spare = Spare(self._prepare_worker().environment, self._narrate) if config.has_spare_process else None
        self._services: list[Supervisor] = []
        self._api_servers: list[Supervisor] = []

    async def main(self) -> int:
        self._narrate(self._division.describe(self._config.api_server_count))
        self._narrate(f"listening on {self._listener.url}; /ready turns true when everything is up")
        self._make_supervisors()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        tasks = {asyncio.create_task(child.run(), name=child.name) for child in self._services + self._api_servers}
        housekeeping = asyncio.create_task(self._retry_waiting())
        spare = [asyncio.create_task(self._spare.run())] if self._spare is not None else []
        try:
            code = await self._wait_for_the_end(tasks)
            await self._shut_down(tasks)
            return code
        finally:
            housekeeping.cancel()
            if self._spare is not None:
                self._spare.close()
            for child in self._services + self._api_servers:
                child.stop_restarting()
                child.kill()
            await asyncio.gather(*tasks, *spare, housekeeping, return_exceptions=True)
            self._listener.close()
            self._dispatcher.close()
            self._run.remove()

    async def _wait_for_the_end(self, tasks: set[asyncio.Task[None]]) -> int:
        """Until a signal (0) or until a child cannot be kept running (its exit code)."""
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({*tasks, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        for task in tasks:
            if task.done() and (error := task.exception()) is not None:
                if not isinstance(error, StartFailed):
                    raise error
                print(f"maxsimd: {error}", file=sys.stderr, flush=True)
                return error.exit_code
        return 0

    # --- children ---------------------------------------------------------------------------------------------

    def _make_supervisors(self) -> None:
        self._services.append(self._supervise("worker", self._prepare_worker))
        if self._has_engine:
            self._services.append(self._supervise("engine", self._prepare_engine))
        for slot in range(self._config.api_server_count):
            self._api_servers.append(
                Supervisor(
                    f"api server {slot}",
                    lambda slot=slot: self._prepare_api_server(slot),  # type: ignore[misc]
                    self._config.startup_timeout,
                    lambda summary, slot=slot: self._on_api_server_up(slot, summary),  # type: ignore[misc]
                    lambda slot=slot: self._on_api_server_down(slot),  # type: ignore[misc]
                    self._narrate,
                )
            )

    def _supervise(self, service: str, prepare: Callable[[], Launch]) -> Supervisor:
        return Supervisor(
            service,
            prepare,
            self._config.startup_timeout,
            lambda summary: self._on_service_up(service, summary),
            lambda: self._on_service_down(service),
            self._narrate,
            self._spare.start if self._spare is not None else start_new,
        )

    def _prepare_worker(self) -> Launch:
        config = self._config
        settings = WorkerSettings(
            address=self._address("worker"),
            running_path=str(self._run_directory / "worker.running"),
            model=model_settings(self._config) if self._has_model else None,
            dim=config.dim,
            cache_directory=config.cache_directory,
            hosts_encoder=self._hosts_encoder,
            device=self._device,
            gpu_memory_utilization=config.gpu_memory_utilization,
            embedding_dtype=config.embedding_dtype,
            cache_bytes=config.cache_bytes(self._device),
            keep_entries=not config.no_embedding_cache,
            max_batch_pairs=config.max_batch_pairs,
            max_batch_tokens=config.batch_tokens(self._device),
            horizon=self._config.request_timeout * HORIZON_SHARE,
            threads=self._division.worker,
            log_level=config.log_level,
        )
        environment = thread_environment(self._division.worker)
        if self._device == "cuda":  # batches of ever other shapes leave no holes in the device's memory
            environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
        return Launch("scorer_worker", settings, environment)

    def _prepare_engine(self) -> Launch:
        settings = EngineSettings(
            address=self._address("engine"),
            running_path=str(self._run_directory / "engine.running"),
            model=model_settings(self._config),
            cache_directory=self._config.cache_directory,
            max_batch_tokens=self._config.batch_tokens("cpu"),
            horizon=self._config.request_timeout * HORIZON_SHARE,
            threads=self._division.engine,
            log_level=self._config.log_level,
        )
        return Launch("engine", settings, thread_environment(self._division.engine))

    def _prepare_api_server(self, slot: int) -> Launch:
        ours, theirs = make_pair()
        self._ends[slot] = ours, theirs
        settings = ApiServerSettings(
            slot=slot,
            channel=theirs.fileno(),
            worker_address=self._address("worker"),
            engine_address=self._address("engine") if self._has_engine else None,
            secret=self._secret,
            threads=self._division.api_server,
            app=app_config(self._config),
            tls=self._tls,
            shutdown_timeout=self._config.shutdown_timeout,
            log_level=self._config.log_level,
        )
        metrics = self._run_directory / "metrics"
        metrics.mkdir(exist_ok=True)
        environment = {
            **thread_environment(self._division.api_server),
            **malloc.ENVIRONMENT,
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "TOKENIZERS_PARALLELISM": "false",  # pieces of work are side by side, each in a thread of its own, in turn
        }
        return Launch("frontend.api_server", settings, environment, (theirs.fileno(),))

    def _address(self, service: str) -> str:
        return f"ipc://{self._run_directory / service}.sock"

    # --- events ---------------------------------------------------------------------------------------------------

    def _on_service_up(self, name: str, summary: dict[str, str]) -> None:
        self._summaries[name] = summary
        self._fingerprints[name] = summary.get("fingerprint", "")
        if len(set(self._fingerprints.values())) > 1:
            other = next(child for child in self._services if child.name != name)
            self._narrate(f"the model's files have changed: starting the {other.name} again")
            other.kill()
        if self._is_announced:
            self._narrate(f"{name}: up again")
            self._let_spare_stand_by()
        self._announce_if_ready()

    def _on_service_down(self, name: str) -> None:
        """Its clients notice by themselves. What it was says nothing of its successor, which reads the files anew."""
        self._summaries.pop(name, None)
        self._fingerprints.pop(name, None)

    def _on_api_server_up(self, slot: int, summary: dict[str, str]) -> None:
        if slot in self._ends:
            ours, theirs = self._ends.pop(slot)
            theirs.close()
            link = ServerLink(slot, ours)
            loop = asyncio.get_running_loop()
            loop.add_reader(ours.fileno(), link.receive)
            self._dispatcher.add(link)
            if self._is_draining:
                link.tell(DRAIN)
            if not self._listener.is_watched and not self._is_draining:
                self._listener.watch(loop, self._dispatcher.dispatch)
            if self._is_announced:
                self._narrate(f"api server {slot}: up again")
        if summary.get("services") == "ready":
            self._ready_slots.add(slot)
            self._announce_if_ready()

    def _on_api_server_down(self, slot: int) -> None:
        self._ready_slots.discard(slot)
        for end in self._ends.pop(slot, ()):
            end.close()
        channel = self._dispatcher.channel(slot)
        if channel is not None:
            asyncio.get_running_loop().remove_reader(channel)
        self._dispatcher.remove(slot)

    def _announce_if_ready(self) -> None:
        """The one line at the end of the start."""
        services_up = len(self._summaries) == len(self._services)
        if self._is_announced or not services_up or len(self._ready_slots) < self._config.api_server_count:
            return
        self._is_announced = True
        worker, engine = self._summaries["worker"], self._summaries.get("engine", {})
        model = engine.get("model") or worker.get("model") or f"none, embeddings of dim {self._config.dim}"
        self._narrate(
            f"ready  {self._listener.url}  model={model}  device={worker.get('device')}  "
            f"api_servers={self._config.api_server_count}  store={worker.get('store')}"
        )
        self._let_spare_stand_by()

    def _let_spare_stand_by(self) -> None:
        """Not before every service is up: they would have to share the cores with it."""
        is_one_model = len(set(self._fingerprints.values())) == 1
        if self._spare is not None and is_one_model and all(child.is_up for child in self._services):
            self._spare.want()

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        if self._signals == 1:
            self._stop.set()
            self._narrate(f"{signal.Signals(number).name}: stopping; once more to stop at once")
        else:
            self._stop_now.set()

    async def _retry_waiting(self) -> None:
        while True:
            await asyncio.sleep(RETRY_INTERVAL)
            self._dispatcher.retry_waiting()

    # --- stop -----------------------------------------------------------------------------------------------------

    async def _shut_down(self, tasks: set[asyncio.Task[None]]) -> None:
        stop_now = asyncio.create_task(self._stop_now.wait())
        orderly = asyncio.create_task(self._stop_in_order(tasks))
        await asyncio.wait({stop_now, orderly}, return_when=asyncio.FIRST_COMPLETED)
        for task in (stop_now, orderly):
            task.cancel()
        await asyncio.gather(stop_now, orderly, return_exceptions=True)

    async def _stop_in_order(self, tasks: set[asyncio.Task[None]]) -> None:
        by_name = {task.get_name(): task for task in tasks}
        self._is_draining = True
        self._dispatcher.tell(DRAIN)
        if self._config.drain_delay and self._is_announced:
            await asyncio.sleep(self._config.drain_delay)
        self._listener.accept_waiting(self._dispatcher.dispatch)
        self._listener.close()
        for child in self._api_servers:
            child.stop_restarting()
            if not child.is_up:
                child.close_lifeline()
        self._dispatcher.tell(STOP)
        await _wait([by_name[child.name] for child in self._api_servers], self._config.shutdown_timeout + 5)
        for child in self._services:
            child.close_lifeline()
        await _wait([by_name[child.name] for child in self._services], SERVICE_STOP_TIMEOUT)
        if self._signals:
            self._narrate("stopped")

    def _narrate(self, line: str) -> None:
        """One line for people, if somebody reads: a log that has gone must not keep the server from stopping."""
        with suppress(BrokenPipeError):
            print(f"maxsimd: {line}", file=sys.stderr, flush=True)


def _hosts_encoder(placement: str, device: str) -> bool:
    """Whether the worker encodes: on CUDA, where embeddings then never leave the device, unless told otherwise."""
    return placement == "worker" or (placement == "auto" and device == "cuda")


async def _wait(tasks: list[asyncio.Task[None]], timeout: float) -> None:
    pending = [task for task in tasks if not task.done()]
    if pending:
        await asyncio.wait(pending, timeout=timeout)
