"""A worker on a host of the bed: exchanges a model as it is told to, over UDP or over TCP."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import rps_jax as rps
from launch.benchmarks.group import COORDINATOR_PORT, FIRST_PORT, answer_requests
from rps_jax import transport
from rps_jax.rules import AverageModels
from rps_jax.rules.lossy import MessageDtype
from rps_jax.transport.carrier import average
from rps_jax.transport.layout import Layout

UDP, UNTAGGED, TCP = "udp", "udp-untagged", "tcp"
"""The ways to exchange: authenticated datagrams, those without tags, and an all-reduce by Gloo."""


class Watched:
    """A network that takes note of where the time of its exchanges goes, and how much arrives.

    Attributes:
        worker: This worker.
        num_workers: How many there are.
        payload_bytes: Of a block in a datagram at the most.
        network: That it watches.
        where: Seconds of all exchanges until now, by the names of `transport`'s `Seconds`, and
            `inside` the network altogether.
        arrived: Share of the others' packets that arrived, of each phase.
    """

    def __init__(self, network: transport.Network) -> None:
        """Takes a network that has been joined."""
        self.worker, self.num_workers = network.worker, network.num_workers
        self.payload_bytes = network.payload_bytes
        self.network = network
        self.where: Counter[str] = Counter()
        self.arrived: list[float] = []

    def exchange(self, step: int, rows: np.ndarray, layout: Layout) -> transport.Exchanged:
        """Takes part in one exchange; see `transport.Network`."""
        began = time.monotonic()
        seen = self.network.exchange(step, rows, layout)
        self.where.update({"inside": time.monotonic() - began} | seen.seconds._asdict())
        others = np.arange(self.num_workers) != self.worker
        self.arrived += [float(seen.received[others].mean()), float(seen.gathered[others].mean())]
        return seen


def read_records(answer: dict[str, Any]) -> list[transport.Exchanged]:
    """Returns the exchanges that an answer of `Worker.exchange` tells of, without their rows."""

    def read(number: int, shift: int, packets: int, *masks: list[list[int]]) -> transport.Exchanged:
        received, gathered = (
            np.unpackbits(np.array(mask, np.uint8), axis=-1, count=packets).astype(bool)
            for mask in masks
        )
        return transport.Exchanged(number, np.empty(0, np.uint8), received, gathered, shift)

    return [read(*record) for record in answer["records"]]


def _as_json(seen: transport.Exchanged) -> list[Any]:
    masks = (np.packbits(mask, axis=-1).tolist() for mask in (seen.received, seen.gathered))
    return [seen.exchange, seen.shift, seen.received.shape[1], *masks]


class Worker:
    """What a worker can be asked; answers are what JSON can hold."""

    def __init__(
        self,
        host: int,
        addresses: list[str],
        num_parameters: int,
        message_dtype: MessageDtype | None = None,
    ) -> None:
        """Meets the others, by jax.distributed, and compiles the all-reduce.

        Args:
            host: The number of this worker.
            addresses: Of all hosts.
            num_parameters: Size of the model, of float32.
            message_dtype: What it is rounded to in datagrams.
        """
        self._rule = AverageModels(message_dtype=message_dtype)
        self._worker, self._addresses = host, addresses
        n = len(addresses)
        jax.distributed.initialize(f"{addresses[0]}:{COORDINATOR_PORT}", n, host)
        model = np.random.default_rng(host).normal(size=num_parameters).astype(np.float32)
        self._params = jnp.asarray(model)
        self._networks: dict[str, Watched] = {}
        mesh = rps.worker_mesh(n)

        def mean(params: Any, stop: Any) -> Any:
            return jax.lax.pmean(params, mesh.axis_name), jax.lax.pmax(stop, mesh.axis_name)

        each = P(mesh.axis_name)
        all_reduce = mesh.spmd(mean, (each, each), each)
        params = mesh.put(model[None])

        def by_tcp(stop: bool) -> bool:
            averaged, stops = all_reduce(params, mesh.put(np.array([stop], np.int32)))
            jax.block_until_ready(averaged)
            return bool(stops.addressable_shards[0].data[0])

        self._by_tcp = by_tcp
        by_tcp(False)

    def join(self, key: str, **options: Any) -> None:
        """Joins the networks of datagrams, with tags and without, and leaves earlier ones.

        Args:
            key: Shared by the workers, in hexadecimal digits.
            **options: Of `transport.join`.
        """
        self.leave()
        for number, (way, secret) in enumerate({UDP: bytes.fromhex(key), UNTAGGED: None}.items()):
            places = [(address, FIRST_PORT + number) for address in self._addresses]
            network = transport.join(places, self._worker, secret, **options)
            self._networks[way] = Watched(network.__enter__())

    def leave(self) -> None:
        """Leaves the networks of datagrams."""
        while self._networks:
            _, watched = self._networks.popitem()
            watched.network.__exit__(None, None, None)

    def exchange(
        self,
        way: str,
        count: int | None = None,
        seconds: float | None = None,
        period: float = 0.0,
    ) -> dict[str, Any]:
        """Exchanges the model again and again.

        Args:
            way: One of the ways above.
            count: How often; None for as long as `seconds` says.
            seconds: For how long; over TCP until the first worker has had enough.
            period: Seconds from the beginning of an exchange to that of the next, at least.

        Returns:
            `spans`, when each exchange began and ended, on the clock that all hosts share; `cpu`,
            seconds of this process on all cores; and over UDP `arrived`, the share of the others'
            packets that did, `link_rate` in bits a second, `where` the seconds went, and
            `records`, for `read_records`, if the network was joined to keep them.
        """
        watched = self._networks.get(way)
        once = self._by_udp(watched) if watched else self._by_tcp
        if watched:
            watched.where.clear()
            watched.arrived.clear()
            watched.network.records.clear()
        spans: list[tuple[float, float]] = []
        cpu, until = time.process_time(), time.monotonic() + (seconds or 0)
        stop = False
        while not stop:
            begin = time.monotonic()
            if spans and (early := spans[-1][0] + period - begin) > 0:
                time.sleep(early)
                begin += early
            last = begin >= until if count is None else len(spans) + 1 == count
            stop = once(last)
            spans.append((begin, time.monotonic()))
        answer: dict[str, Any] = {"spans": spans, "cpu": time.process_time() - cpu}
        if watched:
            # What else there is to an exchange: packing and unpacking, by JAX.
            inside = watched.where.pop("inside")
            packing = sum(end - begin for begin, end in spans) - inside
            answer |= {
                "arrived": float(np.mean(watched.arrived)),
                "link_rate": watched.network.link_rate,
                "where": {"packing": packing, **watched.where},
                "records": [_as_json(seen) for seen in watched.network.records],
            }
        return answer

    def _by_udp(self, watched: Watched) -> Callable[[bool], bool]:
        carrier = transport.Datagrams(watched)

        def once(stop: bool) -> bool:
            jax.block_until_ready(average(carrier, self._rule, self._params, jnp.int32(0)))
            return stop

        return once


if __name__ == "__main__":
    answer_requests(Worker)
