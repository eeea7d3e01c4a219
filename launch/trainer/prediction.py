"""How far apart theory expects drops to set workers, by what their local steps do differently."""

import dataclasses
import functools
from typing import Any

import numpy as np

import rps_jax as rps
from launch.channels import ChannelFlags, make_channel
from launch.cli.fields import fields_of
from launch.config import PRESETS, TrainConfig, predicts_distance
from launch.rules import RuleFlags, make_rule
from launch.trainer.run_directory import PREDICTED
from launch.trainer.schedule import Position
from launch.trainer.setup import Setup
from rps_jax import theory
from rps_jax.updates import INTERVALS


def predict_together(setup: Setup, at: Position, state: rps.TrainState) -> dict[str, float]:
    """Returns what a line says of the workers' updates, and of the distance that follows from them.

    Every process measures its part; process 0 alone knows what it comes to. Of rules of which
    nothing is predicted, it is nothing.
    """
    if not predicts_distance(setup.config):
        return {}
    products = setup.evaluator.update_products(state)
    return predicted(setup.config, products, at.step) if setup.first_process else {}


def predicted(config: TrainConfig, products: rps.UpdateProducts, step: int) -> dict[str, float]:
    """Returns the entries of a line of metrics, after so many steps.

    Args:
        config: Of the run.
        products: What the workers have done differently, and alike.
        step: Steps taken.
    """
    rule = make_rule(config)
    if step < rule.every:
        return {}
    # What is added to an exchange of the model before it has not gone through one itself.
    ongoing = rule.overlaps or step % rule.every > 0
    newest, elder = int(ongoing), int(ongoing) + 1
    apart = np.asarray(products.apart)
    squared = float(apart[newest, newest])
    with np.errstate(all="ignore"):  # That a run has diverged is found by what is measured.
        again = float(apart[newest, elder] / np.sqrt(squared * apart[elder, elder] or 1.0))
        distance = theory.predicted_distance(gains_of(config), products, ongoing)
    return {
        PREDICTED: distance,
        "update_spread": squared**0.5,
        "update_correlation": again,
    }


def gains_of(config: TrainConfig) -> theory.Gains:
    """Returns the gains of a run's channel and rule; measured, where they are, once a process."""
    names = {"algorithm", "num_workers", "assignment", "channel"}
    names |= fields_of(ChannelFlags).keys() | fields_of(RuleFlags).keys()
    deciding: dict[str, Any] = {name: getattr(config, name) for name in names}
    return _gains(dataclasses.replace(PRESETS["digits"], **deciding))


@functools.lru_cache(maxsize=64)
def _gains(config: TrainConfig) -> theory.Gains:
    n = config.num_workers
    # Where many workers are simulated, the oldest updates are left out.
    ages = max(4, min(INTERVALS, 2048 // n))
    return theory.gains(
        make_channel(config), n, ages, rule=make_rule(config), assignment=config.assignment
    )
