"""A web service on a host of the bed: answers requests of the others, and makes its own."""

import asyncio
import random
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

from launch.benchmarks.group import answer_requests

_PORT = 8080


class Web:
    """Serves messages, and asks for them; each is a TCP connection of its own."""

    def __init__(self, host: int, addresses: list[str], message_bytes: int) -> None:
        """Starts to serve.

        Args:
            host: The number of this host.
            addresses: Of all hosts.
            message_bytes: Size of a message.
        """
        self._host = host
        self._others = [address for i, address in enumerate(addresses) if i != host]
        self._message = bytes(message_bytes)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        serve = asyncio.start_server(self._serve, addresses[host], _PORT, backlog=4096)
        self._server = asyncio.run_coroutine_threadsafe(serve, self._loop).result()

    def close(self) -> None:
        """Serves no longer."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        await _cancel(task for task in asyncio.all_tasks() if task is not asyncio.current_task())

    def load(
        self, rate: float, seconds: float, warmup: float, drain: float, seed: str
    ) -> dict[str, list[float] | int]:
        """Asks others for messages: a Poisson process, whether or not earlier ones have come.

        Args:
            rate: Requests a second, each to a host drawn uniformly.
            seconds: For how long, the warm-up included.
            warmup: Seconds at the start that are not measured.
            drain: Seconds after the end in which what is under way may still arrive.
            seed: Decides, with the host, when and whom.

        Returns:
            `seconds` from when a request is due until its last byte has come, and how many
            messages are `unfinished`.
        """
        rng, due, plan = random.Random(f"{seed} {self._host}"), 0.0, []
        while (due := due + rng.expovariate(rate)) < seconds:
            plan.append((due, rng.choice(self._others)))
        asked = self._ask_all(plan, warmup, seconds + drain)
        found, unfinished = asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        return {"seconds": found, "unfinished": unfinished}

    async def _ask_all(
        self, plan: list[tuple[float, str]], warmup: float, end: float
    ) -> tuple[list[float], int]:
        start = time.monotonic()
        tasks = []
        for due, address in plan:
            await asyncio.sleep(start + due - time.monotonic())
            tasks.append(asyncio.create_task(self._ask(address, start + due)))
        measured = [task for task, (due, _) in zip(tasks, plan, strict=True) if due >= warmup]
        if measured:
            await asyncio.wait(measured, timeout=start + end - time.monotonic())
        await _cancel(tasks)
        found = [
            task.result() for task in measured if not task.cancelled() and not task.exception()
        ]
        return found, len(measured) - len(found)

    async def _ask(self, address: str, due: float) -> float:
        loop = asyncio.get_running_loop()
        with socket.socket() as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, (address, _PORT))
            await loop.sock_sendall(connection, b"?")
            left = len(self._message)
            while left:
                received = len(await loop.sock_recv(connection, 1 << 18))
                if not received:
                    raise OSError("the server has gone")
                left -= received
        return time.monotonic() - due

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(1)
            writer.write(self._message)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Ends those that are under way, and waits until they have closed what they had open."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    answer_requests(Web)
