"""The consensus distance that drops lead to by themselves, by Monte Carlo.

The workers' steps are those of the training, with its channel, rule, optimizer and schedule, but
their gradients are noise: independent, normally distributed, of one variance. What a real training
has beside (curvature, noise that fades as the loss does, data that differ between the workers) is
what a measured distance tells beyond the predicted one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import rps_jax as rps
from launch.channels import make_channel
from launch.comparison.report import Result
from launch.config import TrainConfig, make_rule
from launch.trainer.schedule import make_optimizer

_TRAININGS = 8
_ROUNDING = 1e-5
"""Workers that agree differ by less than this."""


def with_prediction(results: Sequence[Result]) -> list[Result]:
    """Returns the results with the mean consensus distance over the epochs that noise leads to.

    Its scale is that of the gradients' noise, which nobody knows beforehand: it is set by the
    measurement of the first setting that drops, of which nothing is predicted.

    Args:
        results: The trainings.
    """
    scale, predicted = None, []
    for result in results:
        ends = np.array([line["step"] for line in result.curves[0]], int)
        distance = float(noise_distances(result.setting.config, ends[-1])[:, ends - 1].mean())
        if scale is None and distance > _ROUNDING:
            scale = float(np.mean(result.mean("consensus_distance"))) / distance
            predicted.append(result)
        else:
            predicted.append(result._replace(predicted=[distance * (scale or 1.0)]))
    return predicted


def noise_distances(config: TrainConfig, total_steps: int) -> np.ndarray:
    """Returns the consensus distances of trainings on noise, whose gradients have variance 1.

    Args:
        config: The training, whose seed is the first of several.
        total_steps: Its steps.

    Returns:
        `[trainings, total_steps]`, after each step.
    """
    # Of noise, there is nothing to clip, and nothing to decay to.
    config = dataclasses.replace(config, clip_norm=None, weight_decay=0.0)
    n = config.num_workers
    rule, channel = make_rule(config), make_channel(config)
    optimizer = make_optimizer(config, config.learning_rate, total_steps)
    params = jnp.zeros(n * max(16, config.packets or 0))

    def loss_fn(params: jax.Array, model_state: Any, batch: Any, key: jax.Array) -> Any:
        noise = jax.random.normal(key, params.shape) / params.size**0.5
        return params @ noise, model_state

    step = rps.make_train_step(
        loss_fn, optimizer, channel, "workers", algorithm=rule, assignment=config.assignment
    )
    of_all = jax.vmap(step, axis_name="workers", in_axes=(0, None), axis_size=n)

    def one_step(state: rps.TrainState, _: None) -> tuple[rps.TrainState, jax.Array]:
        state, metrics = of_all(state, ())
        del metrics
        apart = state.params - state.params.mean(0, keepdims=True)
        return state, jnp.sqrt(jnp.mean(jnp.sum(apart**2, axis=1)))

    @jax.jit
    def training(seed: jax.Array) -> jax.Array:
        one = rps.init_train_state(params, (), optimizer, channel, n, seed, algorithm=rule)
        state = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *jnp.shape(x))), one)
        return jax.lax.scan(one_step, state, None, total_steps)[1]

    seeds = jnp.arange(config.seed, config.seed + _TRAININGS, dtype=jnp.uint32)
    return np.stack([training(seed) for seed in seeds])
