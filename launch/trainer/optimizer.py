"""The optimizer of the local step, and its learning rate over a run."""

import jax
import optax

from launch.config import TrainConfig
from launch.rules import make_rule
from rps_jax import remember_updates

_OVER_THE_RUN: dict[str, optax.Schedule] = {
    "constant": optax.constant_schedule(1.0),
    "cosine": optax.cosine_decay_schedule(1.0, decay_steps=1),
    "step": optax.piecewise_constant_schedule(1.0, {0.5: 0.1, 0.75: 0.1}),
}
"""What the learning rate is multiplied by, from the start of a run, 0, to its end, 1."""


def make_optimizer(
    config: TrainConfig,
    learning_rate: jax.Array | float,
    total_steps: jax.Array | int,
    *,
    remembers: bool = False,
) -> optax.GradientTransformation:
    """Returns the optimizer of the local step.

    Args:
        config: The run's configuration.
        learning_rate: Rate before the schedule lowers it. May be traced: then runs of other rates
            and lengths are the same program.
        total_steps: Steps of the whole run. May be traced.
        remembers: Whether the last of its states are `rps.UpdateSketches`.
    """
    factor = _OVER_THE_RUN[config.schedule]

    def rate(count: jax.Array) -> jax.Array:
        return learning_rate * factor(count / total_steps)

    chain = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    if config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay))
    if config.optimizer == "adam":
        chain.append(optax.adam(rate))
    else:
        chain.append(optax.sgd(rate, momentum=config.momentum or None))
    if remembers:
        chain.append(remember_updates(make_rule(config).every))
    return optax.chain(*chain)
