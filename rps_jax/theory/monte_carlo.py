"""Monte Carlo: what real exchanges over any channel, by any rule, do to the workers' models."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax import averaging, rules
from rps_jax.channels import Channel, Reliable
from rps_jax.delivery import Delivery
from rps_jax.draw import Assignment, draw_exchange, rule_key
from rps_jax.servers import RECEIVED, Server
from rps_jax.theory.policies import Moments

_AXIS = "workers"
_REPLICAS = 50


class Measured(NamedTuple):
    """Monte Carlo estimates.

    Attributes:
        means: what exchanges did on average.
        errors: the standard error of each mean.
        samples: of how many independent values each is the mean: a 95% confidence interval has
            Student's t of so many, less one, degrees of freedom.
    """

    means: Moments
    errors: Moments
    samples: int


def measure(
    channel: Channel,
    num_workers: int,
    num_exchanges: int = 1000,
    seed: int = 0,
    *,
    rule: str | rules.Rule = "rps",
    assignment: Assignment = "random",
    in_a_row: int = 1,
    **options: Any,
) -> Measured:
    """Measures what real exchanges do, for any channel and any rule with any policies.

    Workers that agree at zero, and have agreed there before, change their models (or, of rules of
    gradients, their gradients) by normally distributed numbers, eight coordinates a block, which
    differ between the workers or, for what is called equal, do not. What exchanges make of that is
    measured.

    A channel with state goes on from one to the next. It begins anew, with other drops, 50 times:
    exchanges in a row depend on each other, those of different beginnings do not. So of a trace or
    a schedule the first `num_exchanges` / 50 are seen (times `in_a_row`), again and again.

    Args:
        channel: where drops come from.
        num_workers: at least 2: a single worker has no consensus distance.
        num_exchanges: how many to average over; of a single one, errors are NaN.
        seed: of the drops and the models.
        rule: a rule, or its name in `rps_jax.rules.RULES`.
        assignment: whether servers of blocks are drawn anew for each exchange.
        in_a_row: how many exchanges the models go through before they are looked at.
        options: of the rule, where it is given by its name: `server`, `on_miss`.

    Raises:
        ValueError: fewer than two workers, no exchange, or an unknown rule or option.

    >>> from rps_jax import Bernoulli
    >>> found = measure(Bernoulli(0.1), 8, 200, server="stale", in_a_row=2)
    >>> found.means.contraction < 0.1
    True
    """
    if num_workers < 2:
        raise ValueError(f"num_workers={num_workers}: expected at least 2")
    for name, value in (("num_exchanges", num_exchanges), ("in_a_row", in_a_row)):
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
    simulation = Simulation.of(channel, num_workers, rule, assignment, options)
    drop_key, model_key = jax.random.split(jax.random.key(seed))
    size = 8 * num_workers

    first = simulation.init()
    replicas = min(_REPLICAS, num_exchanges) if jax.tree.leaves(first) else num_exchanges
    replica = np.arange(num_exchanges) * replicas // num_exchanges
    begins = np.diff(replica, prepend=-1) > 0

    def sample(state: Any, now: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        number, anew = now
        state = jax.tree.map(lambda start, last: jnp.where(anew, start, last), first, state)
        key = jax.random.fold_in(model_key, number)
        normal = jax.random.normal(key, (num_workers, size))
        mean = normal.mean(0, keepdims=True)
        equal = jnp.broadcast_to(mean, normal.shape) * num_workers**0.5
        before = jnp.stack([normal - mean, equal], axis=1)
        start = before, simulation.remember(jnp.zeros_like(before)), state
        after, _, state = jax.lax.fori_loop(
            number * in_a_row,
            (number + 1) * in_a_row,
            lambda step, now: simulation.exchange(now[0], now[1], now[2], drop_key, step),
            start,
        )
        return state, _moments(before, after)

    _, measured = jax.lax.scan(sample, first, (jnp.arange(num_exchanges), jnp.asarray(begins)))
    values = np.asarray(measured, np.float64)
    means = values.mean(0)
    # Replicas differ by an exchange in their lengths, where these do not divide: sums, not means.
    sums = np.add.reduceat(values - means, np.flatnonzero(begins))
    errors = jnp.std(sums, 0, ddof=1) * replicas**0.5 / num_exchanges
    return Measured(Moments(*map(float, means)), Moments(*map(float, errors)), replicas)


def _moments(before: jax.Array, after: jax.Array) -> jax.Array:
    """Returns `Moments`, in order, of models `[workers, 2, size]`; the second models are equal."""
    n = len(before)
    mean_before, mean = (x.mean(0, keepdims=True) for x in (before, after))
    spread = jnp.sum((after - mean) ** 2, (0, 2))
    moved = n * jnp.sum((mean - mean_before) ** 2, (0, 2))
    kept = jnp.sum(after * before, (0, 2))
    moments_2x3 = jnp.stack([spread, moved, kept], axis=1) / jnp.sum(before**2, (0, 2))[:, None]
    return moments_2x3.ravel()


@dataclasses.dataclass(frozen=True)
class Simulation:
    """Exchanges of all workers, on one device; each worker has several models at once.

    Attributes:
        channel: where drops come from.
        num_workers: how many workers take part.
        rule: what is made of what arrives.
        assignment: whether servers of blocks are drawn anew.
    """

    channel: Channel
    num_workers: int
    rule: rules.Rule
    assignment: Assignment

    @classmethod
    def of(
        cls,
        channel: Channel,
        num_workers: int,
        rule: str | rules.Rule,
        assignment: Assignment,
        options: dict[str, Any],
    ) -> "Simulation":
        """Returns the exchanges of a rule, or of the rule of a name with its options."""
        made = rules.make_rule(rule, **options)
        return cls(channel if made.lossy else Reliable(), num_workers, made, assignment)

    def init(self) -> Any:
        """Returns the channel's state of all workers before the first exchange."""
        one = self.channel.init(self.num_workers)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (self.num_workers, *jnp.shape(x))), one)

    def remember(self, models: jax.Array) -> Any:
        """Returns the rule's memory of models `[num_workers, models, size]`."""
        return jax.vmap(jax.vmap(self.rule.init))(models)

    def exchange(
        self, models: jax.Array, memory: Any, state: Any, key: jax.Array, step: jax.Array | int
    ) -> tuple[jax.Array, Any, Any]:
        """Returns models, memory and state after an exchange, the same drops for all models."""

        def one_worker(models: jax.Array, memory: Any, state: Any) -> Any:
            delivery, state = draw_exchange(self.channel, state, key, step, _AXIS, self.assignment)
            average = _Average(delivery, jax.lax.axis_index(_AXIS), rule_key(key, step))

            def one_model(model: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
                model, memory = self.rule.on_gradients(model, memory, average)
                return self.rule.on_params(model, memory, average)

            return *jax.vmap(one_model)(models, memory), state

        models, memory, state = jax.vmap(one_worker, axis_name=_AXIS)(models, memory, state)
        return models, memory, state


@dataclasses.dataclass(frozen=True)
class _Average:
    """An exchange as a rule sees it; see `rps_jax.rules.Average`."""

    delivery: Delivery
    worker: jax.Array
    rule_key: jax.Array

    def __call__(self, tree: Any, otherwise: Any, server: Server = RECEIVED) -> Any:
        return averaging.average_or_else(tree, otherwise, self.delivery, _AXIS, server=server)

    def sent_or_last(self, tree: Any, last: Any) -> Any:
        return averaging.sent_or_last(tree, last, self.delivery, self.worker)
