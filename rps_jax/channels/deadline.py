"""Lateness: what takes longer than a deadline is dropped, and nobody waits for it.

Adaptive time-outs of collectives that drop what is late: Warraich et al., "OptiReduce", NSDI 2025.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax import keys
from rps_jax.channels.channel import REDUCE_SCATTER, link_key, walk_links
from rps_jax.channels.fields import packet_shape, register_channel
from rps_jax.checks import check_count, check_number, check_packets, check_scalar
from rps_jax.delivery import Delivery

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_FOREVER = 1e37
"""Seconds that no delay exceeds, so that sums of delays are finite."""

DelayTail = Literal["log-normal", "pareto"]


class DelaysSeen(NamedTuple):
    """What an adaptive deadline follows, the same on every worker.

    Attributes:
        begun: bool scalar, whether there has been an exchange; before it, `seconds` says nothing.
        seconds: float32 `[window, num_workers]`, of each of the last exchanges the delays of one
            message of each worker.
    """

    begun: jax.Array
    seconds: jax.Array


@register_channel
@dataclasses.dataclass(frozen=True)
class Deadline:
    """The delay of every message is drawn; a message that is later than the deadline is dropped.

    Delays are independent of each other, and `Delivery.seconds` says how long a worker has waited:
    in each phase until all has come, or until the deadline. `Deadline(math.inf)` waits for
    everybody: it drops nothing and takes as long as the slowest message.

    Delays are float32 numbers of exponentials and logarithms: the same on devices of one kind.

    Attributes:
        deadline: seconds that a phase may take; None follows the delays: their median and
            `deadline_mads` times their median absolute deviation, of the last `window` exchanges
            one message of each worker, which all know from the shared key. It is stationary from
            the first exchange. May be traced, as the other numbers.
        median_delay: median delay of a message, in seconds.
        delay_spread: the standard deviation of the logarithm of the delay or, of a Pareto tail,
            1 / its index.
        slowness: by what delays are multiplied: of each worker, `[num_workers]`, the larger one of
            the two ends; or of each link, `[num_workers, num_workers]`, by source and destination;
            None if all are alike.
        deadline_mads: see `deadline`.
        delay_tail: how delays are distributed: "log-normal" or "pareto".
        window: see `deadline`.
        packets: how many packets a message is cut into, each with a delay of its own; None delays
            messages whole.

    Raises:
        ValueError: numbers out of range.

    >>> channel = Deadline(0.02, median_delay=0.01, delay_spread=0.5)
    >>> delivery, state = channel.sample(channel.init(16), jax.random.key(0), 3, num_workers=16)
    >>> bool(delivery.seconds <= 2 * 0.02)
    True
    """

    deadline: jax.Array | float | None = dataclasses.field(
        default=None,
        metadata={"help": "Seconds that a phase may take; None follows the delays that were seen."},
    )
    median_delay: jax.Array | float = dataclasses.field(
        default=0.01, metadata={"help": "Median delay of a message, in seconds."}
    )
    delay_spread: jax.Array | float = dataclasses.field(
        default=0.5,
        metadata={"help": "Standard deviation of the logarithm of delays; Pareto: 1 / its index."},
    )
    slowness: jax.Array | np.ndarray | None = None
    deadline_mads: jax.Array | float = dataclasses.field(
        default=3.0,
        metadata={"help": "Median absolute deviations from the median to a deadline that follows."},
    )
    delay_tail: DelayTail = dataclasses.field(
        default="log-normal",
        metadata={"static": True, "help": "How delays are distributed."},
    )
    window: int = dataclasses.field(default=8, metadata={"static": True})
    packets: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self) -> None:
        positive = (math.ulp(0.0), math.inf, "a positive number")
        if self.deadline is not None:
            check_number("deadline", self.deadline, *positive)
        finite = (_SMALLEST, _LARGEST, "a positive, finite number")
        check_number("median_delay", self.median_delay, *finite)
        at_least_0 = (0.0, _LARGEST, "a finite number of at least 0")
        check_number("delay_spread", self.delay_spread, *at_least_0)
        check_number("deadline_mads", self.deadline_mads, *at_least_0)
        if self.slowness is not None:
            check_number("slowness", self.slowness, *finite)
            shape = jnp.shape(self.slowness)
            if len(shape) not in (1, 2) or shape[0] != shape[-1]:
                raise ValueError(
                    f"slowness has shape {shape}: expected (num_workers,) or "
                    "(num_workers, num_workers)"
                )
        if self.delay_tail not in get_args(DelayTail):
            expected = " or ".join(get_args(DelayTail))
            raise ValueError(f"delay_tail={self.delay_tail!r}: expected {expected}")
        check_count("window", self.window)
        check_packets(self.packets)

    def init(self, num_workers: int) -> DelaysSeen | tuple[()]:
        """Returns the state before the first exchange: `()` where the deadline is fixed."""
        if self.deadline is not None:
            return ()
        return DelaysSeen(jnp.bool_(False), jnp.zeros((self.window, num_workers), jnp.float32))

    def sample(
        self, state: Any, key: jax.Array, worker: jax.Array | int, num_workers: int
    ) -> tuple[Delivery, Any]:
        """Draws one exchange as `worker` sees it; see `Channel.sample`.

        Raises:
            ValueError: `slowness` is not of as many workers.
        """
        for name in ("median_delay", "delay_spread", "deadline_mads"):
            check_scalar(name, getattr(self, name))
        if self.slowness is not None and len(self.slowness) != num_workers:
            raise ValueError(
                f"num_workers={num_workers}: expected {len(self.slowness)}, the rows of slowness"
            )
        key = keys.portable(key)
        if self.deadline is not None:
            check_scalar("deadline", self.deadline)
            deadline = jnp.asarray(self.deadline, jnp.float32)
        else:
            deadline, state = self._follow(state, key, num_workers)

        def move(
            phase: int, key: jax.Array, source: jax.Array, destination: jax.Array, memory: Any
        ) -> tuple[jax.Array, jax.Array]:
            del phase, memory
            seconds = self._delay(key, source, destination)
            return seconds <= deadline, seconds

        delivery, delays = walk_links(move, ((), (), ()), key, worker, num_workers)
        others = jnp.arange(num_workers, dtype=jnp.int32) != worker

        def waited(seconds: jax.Array) -> jax.Array:
            latest = seconds.reshape(num_workers, -1).max(axis=1)
            return jnp.minimum(jnp.where(others, latest, 0).max(), deadline)

        _, of_received, of_gathered = delays
        return delivery._replace(seconds=waited(of_received) + waited(of_gathered)), state

    def _delay(self, key: jax.Array, source: jax.Array, destination: jax.Array) -> jax.Array:
        """Returns the delays of the packets of one message, in seconds."""
        # In the middle of the step of the draws: neither 0 nor 1.
        uniform = keys.uniform(key, packet_shape(self.packets)) + jnp.float32(2**-24)
        if self.delay_tail == "log-normal":
            logarithm = jax.scipy.special.ndtri(uniform)
        else:
            logarithm = -jnp.log1p(-uniform) - jnp.float32(math.log(2))
        scale = jnp.asarray(self.median_delay, jnp.float32)
        if self.slowness is not None:
            slowness = jnp.asarray(self.slowness, jnp.float32)
            by_link = slowness.ndim == 2
            ends = jnp.maximum(slowness[source], slowness[destination])
            scale = scale * (slowness[source, destination] if by_link else ends)
        spread = jnp.asarray(self.delay_spread, jnp.float32)
        return jnp.minimum(scale * jnp.exp(spread * logarithm), jnp.float32(_FOREVER))

    def _follow(
        self, state: DelaysSeen, key: jax.Array, num_workers: int
    ) -> tuple[jax.Array, DelaysSeen]:
        """Returns the deadline that follows from what was seen before, and what is seen now."""

        def see(key: jax.Array) -> jax.Array:
            """Returns the delays of one message of each worker in the reduce-scatter."""
            # Another receiver at every exchange, so that all links count.
            offset = 1 + keys.randint(jax.random.fold_in(key, 2), max(num_workers - 1, 1))

            def delay(source: jax.Array) -> jax.Array:
                destination = (source + offset) % num_workers
                of_link = link_key(key, REDUCE_SCATTER, source, destination)
                return self._delay(of_link, source, destination).reshape(-1)[0]

            return jax.vmap(delay)(jnp.arange(num_workers, dtype=jnp.int32))

        # Before the first exchange, as many have been seen as later: the deadline is stationary.
        earlier = jax.vmap(lambda row: see(jax.random.fold_in(key, 3 + row)))
        before = jnp.where(state.begun, state.seconds, earlier(jnp.arange(self.window)))
        median = jnp.median(before)
        mads = jnp.asarray(self.deadline_mads, jnp.float32)
        deadline = median + mads * jnp.median(jnp.abs(before - median))
        after = jnp.concatenate([before[1:], see(key)[None]])
        # Of the type of the state: in a shard_map, a constant has another, which no scan takes.
        return deadline, DelaysSeen(state.begun | True, after)
