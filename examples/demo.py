"""Starts a server with the embedded model, reranks the sample twice, and stops the server again.

Run by `make demo`. Arguments are passed on to `maxsimd serve`. Needs nothing but the standard library and the command
`maxsimd` of the same environment.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SAMPLE = Path(__file__).with_name("sample.json")
HOST = "127.0.0.1"
START_TIMEOUT = 300.0  # seconds
STOP_TIMEOUT = 60.0
POLL_INTERVAL = 0.1


def main() -> int:
    sample = json.loads(SAMPLE.read_text(encoding="utf-8"))
    query, documents = sample["query"], [document["text"] for document in sample["documents"]]
    port = free_port()
    try:
        with running_server(port, sys.argv[1:]) as server:
            wait_until_ready(server, port)
            results, first = rerank(port, query, documents)
            _, second = rerank(port, query, documents)
            print_ranking(query, documents, results)
            print(f"\nfirst request, {len(documents)} documents tokenised, encoded and scored: {first * 1000:8.1f} ms")
            print(f"second request, everything found in the embedding store:  {second * 1000:8.1f} ms\n", flush=True)
    except ServerFailed as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("The server has stopped. `make serve` leaves one running; README.md says what to ask it.")
    return 0


class ServerFailed(Exception):
    """The server did not start, answer or stop as it should. The text is for the user."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server(port: int, more: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, whose output goes where ours goes, stopped on leaving.

    Raises:
        ServerFailed: it did not stop in time, or ended with another exit code than 0.
    """
    command = ["maxsimd", "serve", "--host", HOST, "--port", str(port), "--api-server-count", "2", *more]
    print(f"$ {' '.join(command)}", flush=True)
    # The demo says itself what the server is to do: a developer's own settings must not change it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAXSIMD_")}
    command[0] = str(Path(sys.executable).with_name("maxsimd"))
    server = subprocess.Popen(command, env=environment)
    try:
        yield server
    except KeyboardInterrupt:  # the terminal has told the server too
        stop(server, tell=False)
        raise
    except BaseException:
        stop(server, tell=True)
        raise
    code = stop(server, tell=True)
    if code != 0:
        raise ServerFailed(f"the server ended with exit code {code}, not 0")


def stop(server: subprocess.Popen[bytes], tell: bool) -> int:
    """Stop the server as Ctrl-C would; returns its exit code.

    Raises:
        ServerFailed: it had to be killed.
    """
    if tell and server.poll() is None:
        server.send_signal(signal.SIGINT)
    try:
        return server.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
        raise ServerFailed(f"the server did not stop within {STOP_TIMEOUT:.0f} s") from None


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    """Return when /ready answers 200.

    Raises:
        ServerFailed: the server ended, or was not ready in time.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ServerFailed(f"the server did not start (exit code {server.returncode}); it says why above")
        if is_ready(port):
            return
        time.sleep(POLL_INTERVAL)
    raise ServerFailed(f"the server was not ready within {START_TIMEOUT:.0f} s")


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):  # nobody listens yet
        return False
    finally:
        connection.close()


def rerank(port: int, query: str, documents: list[str]) -> tuple[list[dict[str, float]], float]:
    """The results of POST /rerank, best first, and the seconds that it took.

    Raises:
        ServerFailed: the answer is not a ranking.
    """
    body = json.dumps({"query": query, "documents": documents, "return_documents": False})
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        started = time.perf_counter()
        connection.request("POST", "/rerank", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        took = time.perf_counter() - started
    except (OSError, http.client.HTTPException) as error:
        raise ServerFailed(f"POST /rerank: {error}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise ServerFailed(f"POST /rerank answered {response.status}: {answer.decode(errors='replace')}")
    results: list[dict[str, float]] = json.loads(answer)["results"]
    return results, took


def print_ranking(query: str, documents: list[str], results: list[dict[str, float]]) -> None:
    width = shutil.get_terminal_size((100, 24)).columns
    print(f"\nquery: {query}\n")
    for rank, result in enumerate(results, start=1):
        head = f"{rank:3}  {result['relevance_score']:7.3f}  "
        print(head + shorten(documents[int(result["index"])], width - len(head)))


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 3)].rstrip() + "..."


if __name__ == "__main__":
    sys.exit(main())
