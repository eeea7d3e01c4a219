"""The consensus distance that drops make of what the workers' local steps do differently.

Let U_t be what the workers' local steps change between two exchanges, u_t = U_t (I - A) what they
do differently, and D_t what workers differ by after the exchange of it:

    D_t = (D_{t-1} + U_t) W_t (I - A)

is linear, and so is every rule of models. So its mean square over the drops is a sum over pairs of
updates of their inner products, C_jk = mean_i <u_{t-j}, u_{t-k}>_i, times gains that depend on the
channel and the rule alone:

    E ||D_t||^2 / n = sum_jk G_jk C_jk

Of independent drops at servers drawn at random, each exchange that both updates have gone through
leaves beta of their product, and each that the elder has gone through before keeps gamma of it:

    G_jk = beta^(min(j, k) + 1) gamma^|j - k|

In steady state, where C_jk is the autocovariance R_|j-k|, that is beta / (1 - beta) (R_0 + 2 sum_k
gamma^k R_k). Plain SGD whose gradients have variance sigma^2 and dissimilarity zeta^2 has R_0 =
lr^2 (sigma^2 (n - 1) / n + zeta^2) and R_k = lr^2 zeta^2, as `steady_consensus_distance` has it;
with momentum, R_k falls off slowly. Rules that part equal models (stale ones) add the same sum over
what updates have in common. Curvature counts as far as the updates show it: where models have come
to differ, so do their gradients.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rps_jax import rules
from rps_jax.channels import Bernoulli, Channel, Reliable
from rps_jax.draw import Assignment
from rps_jax.rules.lossy import LossyRule
from rps_jax.theory.monte_carlo import Simulation
from rps_jax.theory.policies import moments
from rps_jax.updates import UpdateProducts


class Gains(NamedTuple):
    """What exchanges make of updates; element j is of the j-th newest, counted from 0.

    Attributes:
        apart: G_jk `[ages, ages]`, by which the product of what two updates have done differently
            enters the squared deviations.
        together: the same for what they have done on all workers alike.
        kept: `[ages]`, what a worker has left, in expectation, of what an update did differently.
    """

    apart: np.ndarray
    together: np.ndarray
    kept: np.ndarray


def gains(
    channel: Channel,
    num_workers: int,
    ages: int,
    *,
    rule: str | rules.Rule = "rps",
    assignment: Assignment = "random",
    num_exchanges: int = 500,
    seed: int = 0,
    **options: Any,
) -> Gains:
    """Returns the gains of any channel and any rule that averages models.

    Exact for RPS, independent drops at one rate, and servers drawn at random; else by Monte Carlo,
    with a relative error of about 1% by default. Without the rounding of messages, which is not
    linear.

    Args:
        channel: where drops come from.
        num_workers: n, at least 1.
        ages: how many updates are looked back at, at least 1.
        rule: a rule of models, or its name.
        assignment: whether servers of blocks are drawn anew for each exchange.
        num_exchanges: of the Monte Carlo.
        seed: of the Monte Carlo.
        options: of the rule, where it is given by its name.

    Raises:
        ValueError: no age, or an unknown rule or option.

    >>> from rps_jax import Bernoulli
    >>> gains(Bernoulli(0.1), 16, ages=2).apart.round(4)
    array([[0.0891, 0.0084],
           [0.0084, 0.0079]])
    """
    if ages < 1:
        raise ValueError(f"ages={ages}: expected at least 1")
    if num_workers == 1:
        return Gains(np.zeros((ages, ages)), np.zeros((ages, ages)), np.zeros(ages))
    made = rules.make_rule(rule, **options)
    if isinstance(made, LossyRule) and made.message_dtype is not None:
        made = dataclasses.replace(made, message_dtype=None)
    plain = type(made) is rules.AverageModels and (made.server, made.on_miss) == ("received", "own")
    # A subclass may draw otherwise.
    if plain and assignment == "random" and type(channel) in (Bernoulli, Reliable):
        return _exact(channel, num_workers, ages)
    simulation = Simulation.of(channel, num_workers, made, assignment, {})
    return _measured(simulation, ages, num_exchanges, seed)


def predicted_distance(of: Gains, products: UpdateProducts, ongoing: bool = False) -> float:
    """Returns the root mean square of the consensus distance, by the updates of a training.

    Args:
        of: the gains.
        products: what the workers remember of their updates.
        ongoing: whether the newest has not gone through an exchange yet.
    """
    apart, together = (np.asarray(x, np.float64) for x in products)
    first, ages = int(ongoing), min(len(of.kept), len(apart) - ongoing)
    old = slice(first, first + ages)
    squared = np.sum(of.apart[:ages, :ages] * apart[old, old])
    squared += np.sum(of.together[:ages, :ages] * together[old, old])
    if ongoing:
        squared += apart[0, 0] + 2 * of.kept[:ages] @ apart[0, old]
    return float(np.sqrt(max(squared, 0.0)))


def _exact(channel: Channel, num_workers: int, ages: int) -> Gains:
    rates: tuple[float, float | None] = (0.0, None)
    if isinstance(channel, Bernoulli):
        gather = channel.all_gather_drop_rate
        rates = (float(channel.drop_rate), None if gather is None else float(gather))
    found, age = moments(num_workers, *rates), np.arange(ages)
    both = np.minimum(age[:, None], age) + 1
    apart = found.contraction**both * found.kept ** abs(age[:, None] - age)
    return Gains(apart, np.zeros((ages, ages)), found.kept ** (age + 1))


def _measured(simulation: Simulation, ages: int, num_exchanges: int, seed: int) -> Gains:
    """Makes the same update before every exchange, and looks at what is left of each."""
    n = simulation.num_workers
    size = n * max(1, 256 // n)
    drop_key, model_key = jax.random.split(jax.random.key(seed))
    normal = jax.random.normal(model_key, (n, size))
    mean = normal.mean(0, keepdims=True)
    both = normal - mean, jnp.broadcast_to(mean, normal.shape)
    update = jnp.stack([x / jnp.mean(jnp.sum(x**2, 1)) ** 0.5 for x in both], axis=1)[:, None]

    def after(left: Any, fresh: Any) -> Any:
        """Returns `[n, 1 + ages, 2, ...]` an exchange later: nothing, a fresh update, the older."""
        return jnp.concatenate([left[:, :1], fresh, left[:, 1:-1]], axis=1)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(n, 2 * (1 + ages), *x.shape[3:])

    def step(carry: Any, number: jax.Array) -> tuple[Any, Any]:
        models, memory, state = carry
        # Workers that have agreed all along are the background of every update.
        models = after(models, models[:, :1] + update)
        memory = jax.tree.map(lambda x: after(x, x[:, :1]), memory)
        exchanged, remembered, state = simulation.exchange(
            flat(models), jax.tree.map(flat, memory), state, drop_key, number
        )
        models, memory = jax.tree.map(
            lambda x: x.reshape(n, 1 + ages, 2, *x.shape[2:]), (exchanged, remembered)
        )
        parted = (models - models.mean(0, keepdims=True))[:, 1:]
        products = jnp.einsum("njce,nkce->cjk", parted, parted, precision="highest") / n
        kept = jnp.sum(parted[:, :, 0] * update[:, :, 0], (0, 2)) / n
        return (models, memory, state), (products, kept)

    models = jnp.zeros((n, 1 + ages, 2, size))
    memory = jax.tree.map(
        lambda x: x.reshape(n, 1 + ages, 2, *x.shape[2:]), simulation.remember(flat(models))
    )
    steps = jnp.arange(ages + num_exchanges, dtype=jnp.int32)
    start = models, memory, simulation.init()
    _, measured = jax.jit(lambda start: jax.lax.scan(step, start, steps))(start)
    products, kept = (np.asarray(x[ages:], np.float64).mean(0) for x in measured)
    return Gains(products[0], products[1], kept)
