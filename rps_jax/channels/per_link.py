"""Drops at a rate of its own on each link: bad links, bad workers, racks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax import keys
from rps_jax.channels.channel import sample_links
from rps_jax.channels.fields import packet_shape, register_channel
from rps_jax.checks import check_number, check_packets
from rps_jax.delivery import Delivery


@register_channel
@dataclasses.dataclass(frozen=True)
class PerLink:
    """Every message is dropped independently, with the probability of its link.

    The matrix is data, like a batch: each worker takes its row and its column of it.

    Attributes:
        drop_rates: probabilities in [0, 1], by source and destination, `[num_workers, num_workers]`
            or, by phase (0 the reduce-scatter, 1 the all-gather), `[2, num_workers, num_workers]`.
            May be traced. A worker's own messages arrive, whatever stands on the diagonal.
        packets: how many packets a message is cut into, each dropped by itself; None drops messages
            whole.

    Raises:
        ValueError: a rate outside [0, 1], another shape, or fewer than one packet.

    >>> channel = PerLink.racks([4, 4], within=0.001, between=0.1)
    >>> channel.drop_rates.shape
    (8, 8)
    """

    drop_rates: jax.Array | np.ndarray
    packets: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        check_number("drop_rates", self.drop_rates)
        shape = jnp.shape(self.drop_rates)
        square = (*shape[-1:], *shape[-1:])
        if not shape or 0 in shape or shape not in (square, (2, *square)):
            raise ValueError(
                f"drop_rates has shape {shape}: expected (num_workers, num_workers) or "
                "(2, num_workers, num_workers)"
            )
        check_packets(self.packets)

    @classmethod
    def one_bad_link(
        cls,
        num_workers: int,
        source: int,
        destination: int,
        drop_rate: float,
        others: float = 0.0,
        packets: int | None = None,
    ) -> "PerLink":
        """Returns a network in which the link from `source` to `destination` has its own rate.

        Args:
            num_workers: how many workers there are.
            source: the sender on that link.
            destination: the receiver.
            drop_rate: its rate, in both phases.
            others: the rate of all other links.
            packets: as of the class.

        Raises:
            ValueError: no such worker, or a number out of range.
        """
        _check_workers(num_workers, source=source, destination=destination)
        rates = np.full((num_workers, num_workers), others, np.float32)
        rates[source, destination] = drop_rate
        return cls(rates, packets)

    @classmethod
    def one_bad_worker(
        cls,
        num_workers: int,
        worker: int,
        drop_rate: float,
        others: float = 0.0,
        packets: int | None = None,
    ) -> "PerLink":
        """Returns a network in which all links from and to one worker have a rate of their own.

        Args:
            num_workers: how many workers there are.
            worker: that worker.
            drop_rate: the rate of its links, in both phases.
            others: the rate of all other links.
            packets: as of the class.

        Raises:
            ValueError: no such worker, or a number out of range.
        """
        _check_workers(num_workers, worker=worker)
        rates = np.full((num_workers, num_workers), others, np.float32)
        rates[worker], rates[:, worker] = drop_rate, drop_rate
        return cls(rates, packets)

    @classmethod
    def racks(
        cls, sizes: Any, within: float, between: float, packets: int | None = None
    ) -> "PerLink":
        """Returns a network of racks, whose workers are numbered rack by rack.

        Args:
            sizes: how many workers each rack holds.
            within: the rate of links between workers of one rack, in both phases.
            between: the rate of all other links.
            packets: as of the class.

        Raises:
            ValueError: no racks, or a number out of range.
        """
        sizes = np.asarray(sizes)
        if sizes.ndim != 1 or not sizes.size or not np.issubdtype(sizes.dtype, np.integer):
            raise ValueError(f"sizes={sizes}: expected the number of workers of each rack")
        if (sizes < 1).any():
            raise ValueError(f"sizes={sizes}: expected at least 1 worker in a rack")
        rack = np.repeat(np.arange(len(sizes)), sizes)
        rates = np.where(rack[:, None] == rack, within, between).astype(np.float32)
        return cls(rates, packets)

    def init(self, num_workers: int) -> tuple[()]:
        """Returns `()`: past drops say nothing of the next."""
        del num_workers
        return ()

    def sample(
        self, state: tuple[()], key: jax.Array, worker: jax.Array | int, num_workers: int
    ) -> tuple[Delivery, tuple[()]]:
        """Draws one exchange as `worker` sees it; see `Channel.sample`.

        Raises:
            ValueError: the matrix is not of as many workers.
        """
        rates = jnp.asarray(self.drop_rates, jnp.float32)
        if rates.shape[-1] != num_workers:
            raise ValueError(
                f"num_workers={num_workers}: expected {rates.shape[-1]}, the rows of drop_rates"
            )

        def arrives(
            phase: int, link_key: jax.Array, source: jax.Array, destination: jax.Array
        ) -> jax.Array:
            of_phase = rates[phase] if rates.ndim == 3 else rates
            rate = of_phase[source, destination]
            return keys.uniform(link_key, packet_shape(self.packets)) >= rate

        return sample_links(arrives, key, worker, num_workers), state


def _check_workers(num_workers: int, **workers: int) -> None:
    """Raises `ValueError` for an index that no worker has."""
    for name, worker in workers.items():
        if not 0 <= worker < num_workers:
            raise ValueError(f"{name}={worker}: expected a worker, 0 to {num_workers - 1}")
