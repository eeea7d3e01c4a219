"""Workers that go away and come back."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax import keys
from rps_jax.channels.fields import register_channel
from rps_jax.channels.two_states import check_stay, transitions
from rps_jax.checks import check_number, check_scalar
from rps_jax.delivery import Delivery


class WorkersAway(NamedTuple):
    """What every worker knows of all, the same on each.

    Attributes:
        exchange: int32 scalar, how many exchanges there have been.
        away: bool `[num_workers]`, who was away at random in the last one.
    """

    exchange: jax.Array
    away: jax.Array


@register_channel
@dataclasses.dataclass(frozen=True)
class Outage:
    """Every message from and to a worker that is away is dropped, in both phases.

    Workers go away at random, independently of each other, for a geometric number of exchanges,
    and stationary from the first exchange; or by a schedule; or both.

    Attributes:
        away_rate: the share of time for which each worker is away in the long run, in [0, 1]. May
            be traced, as the other numbers.
        mean_outage: for how many exchanges it stays away, on average; at least 1, and at least
            away_rate / (1 - away_rate), for a worker is there for an exchange or more in between.
            Traced numbers, and an `away_rate` of 1, give the shortest outages that can be where
            these are longer.
        schedule: int32 `[outages, 3]`, of each outage the worker, its first exchange, and the first
            exchange after it, counted from 0; None if there are none.

    Raises:
        ValueError: numbers out of range, or that do not fit together.

    >>> channel = Outage(schedule=[[3, 100, 200]])
    >>> delivery, state = channel.sample(channel.init(4), jax.random.key(0), 1, num_workers=4)
    >>> delivery.gathered
    Array([ True,  True,  True,  True], dtype=bool)
    """

    away_rate: jax.Array | float = dataclasses.field(
        default=0.0, metadata={"help": "Share of time for which each worker is away."}
    )
    mean_outage: jax.Array | float = dataclasses.field(
        default=20.0, metadata={"help": "For how many exchanges it stays away, on average."}
    )
    schedule: jax.Array | np.ndarray | list[list[int]] | None = None

    def __post_init__(self) -> None:
        check_number("away_rate", self.away_rate)
        check_number("mean_outage", self.mean_outage, 1, math.inf, "at least 1")
        numbers = (self.away_rate, self.mean_outage)
        if not any(isinstance(number, jax.core.Tracer) for number in numbers):
            share, mean_outage = (np.asarray(number, np.float64) for number in numbers)
            check_stay("mean_outage", mean_outage, share, f"away_rate={share}")
        if self.schedule is not None and not isinstance(self.schedule, jax.core.Tracer):
            rows = np.asarray(self.schedule)
            _check_schedule(rows)
            object.__setattr__(self, "schedule", rows.astype(np.int32))

    def init(self, num_workers: int) -> WorkersAway:
        """Returns the state before the first exchange."""
        return WorkersAway(jnp.int32(0), jnp.zeros(num_workers, bool))

    def sample(
        self, state: WorkersAway, key: jax.Array, worker: jax.Array | int, num_workers: int
    ) -> tuple[Delivery, WorkersAway]:
        """Draws one exchange as `worker` sees it; see `Channel.sample`.

        Raises:
            ValueError: the schedule has a worker that there is not.
        """
        for name in ("away_rate", "mean_outage"):
            check_scalar(name, getattr(self, name))
        at_random = self._move(state, key, num_workers)
        there = ~(at_random | self._scheduled(state.exchange, num_workers))
        me = jnp.arange(num_workers, dtype=jnp.int32) == worker
        arrives = (there & there[worker]) | me
        return Delivery(arrives, arrives, arrives), WorkersAway(state.exchange + 1, at_random)

    def _move(self, state: WorkersAway, key: jax.Array, num_workers: int) -> jax.Array:
        """Returns who is away at random in the next exchange, bool `[num_workers]`."""
        share = jnp.float32(self.away_rate)
        leaves, returns = transitions(share, self.mean_outage)
        key = keys.portable(key)

        def draw(worker: jax.Array) -> jax.Array:
            return keys.uniform(jax.random.fold_in(key, worker))

        begun = state.exchange > 0
        probability = jnp.where(begun, jnp.where(state.away, 1 - returns, leaves), share)
        return jax.vmap(draw)(jnp.arange(num_workers)) < probability

    def _scheduled(self, exchange: jax.Array, num_workers: int) -> jax.Array:
        """Returns whom the schedule keeps away, bool `[num_workers]`."""
        nobody = jnp.zeros(num_workers, bool)
        if self.schedule is None:
            return nobody
        if isinstance(self.schedule, np.ndarray):
            latest = self.schedule[:, 0].max(initial=0)
            if latest >= num_workers:
                raise ValueError(f"schedule has worker {latest}: expected 0 to {num_workers - 1}")
        workers, first, after = jnp.asarray(self.schedule, jnp.int32).T
        return nobody.at[workers].max((first <= exchange) & (exchange < after), mode="drop")


def _check_schedule(rows: np.ndarray) -> None:
    """Raises `ValueError` if this is no schedule."""
    if rows.ndim != 2 or rows.shape[1] != 3 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(
            f"schedule has shape {rows.shape} and dtype {rows.dtype}: expected int32 (outages, 3): "
            "worker, first exchange, first exchange after it"
        )
    if (rows < 0).any():
        raise ValueError(f"schedule has {rows.min()}: expected numbers of at least 0")
    if (backwards := rows[:, 1] > rows[:, 2]).any():
        raise ValueError(
            f"schedule has {rows[backwards][0].tolist()}: expected the first exchange after an "
            "outage behind its first"
        )
