"""The rule whose exchange runs beside the next local step."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_files import read_metrics

import rps_jax as rps
from rps_jax import theory

N = 8


def loss_fn(params, model_state, batch, key):
    """A loss whose gradient is the batch, wherever the model is."""
    del key
    return jnp.sum(params * batch), {"mean": 0.9 * model_state["mean"] + batch.mean()}


def make(channel, algorithm, size):
    optimizer = optax.sgd(1.0)
    step = rps.make_train_step(loss_fn, optimizer, channel, "workers", algorithm=algorithm)
    model_state = {"mean": jnp.float32(0)}
    one = rps.init_train_state(
        jnp.zeros(size), model_state, optimizer, channel, N, algorithm=algorithm
    )
    return step, jax.tree.map(lambda x: jnp.stack([x] * N), one)


def of_workers(function):
    return jax.jit(jax.vmap(function, axis_name="workers"))


def batches(step, size):
    return np.random.default_rng(step).normal(size=(N, size)).astype(np.float32)


def test_the_parts_of_a_step_are_the_step():
    step, state = make(rps.Bernoulli(0.3), "overlap", 20)
    batch = batches(0, 20)
    whole, metrics = of_workers(step)(state, batch)
    exchanged = of_workers(step.exchange)(state)
    local = of_workers(step.local)(state, batch)
    joined, of_parts = of_workers(step.join)(state, exchanged, local)
    for a, b in zip(*map(jax.tree.leaves, ((whole, metrics), (joined, of_parts))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_the_local_step_has_no_collective():
    """So that those of all workers keep one order, whichever thread is first."""

    class Silent(rps.MaskedCollectives):
        def exchange(self, *args):
            raise AssertionError

        sum = exchange

    carrier = Silent(rps.Bernoulli(0.3), "workers")
    _, state = make(carrier.channel, "overlap", 20)
    step = rps.make_step(loss_fn, optax.sgd(1.0), rps.rules.OverlapModels(), carrier)
    local = jax.eval_shape(of_workers(step.local), state, batches(0, 20))
    assert local.updates.shape == (N, 20)


@pytest.mark.long
def test_distances_settle_a_local_change_further_apart():
    """Within five standard errors, over independent packets: fails once in 1.7 million keys."""
    drop_rate, packets, elements, steps = 0.3, 64, 8, 4
    size = N * packets * elements
    contraction = theory.contraction(N, drop_rate)
    of_changes = (1 - 1 / N) * sum(contraction**k for k in range(steps))
    for algorithm, expected in (("overlap", of_changes), ("rps", contraction * of_changes)):
        step, state = make(rps.Bernoulli(drop_rate, packets=packets), algorithm, size)
        program = of_workers(step)
        for number in range(steps):
            state, _ = program(state, batches(number, size))
        x = np.asarray(state.params, np.float64)
        distance = ((x - x.mean(0)) ** 2).mean(0).reshape(-1, elements).mean(1)
        error = distance.std() / len(distance) ** 0.5
        assert abs(distance.mean() - expected) < 5 * error
        assert error < 0.05 * expected


@pytest.mark.long
def test_it_trains_alike_in_one_program_and_in_two_threads(tmp_path):
    """One process has one program, two have three each."""
    flags = ["--preset", "linear", "--algorithm", "overlap", "--num-workers", "2", "--epochs", "2"]
    modules = {"one": ["launch.train"], "two": ["launch.local", "--processes", "2", "--"]}
    for name, module in modules.items():
        argv = [sys.executable, "-m", *module, *flags, "--output-dir", str(tmp_path / name)]
        subprocess.run(argv, cwd=Path(__file__).parent.parent, check=True)
    one, two = (read_metrics(tmp_path / name) for name in modules)
    for expected, found in zip(one, two, strict=True):
        for name in ("train_loss", "consensus_distance", "delivered_fraction"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4)


def test_any_channel_runs_under_pmap():
    channel = rps.PerLink(np.full((N, N), 0.1, np.float32))
    step, state = make(channel, "overlap", 20)
    _, metrics = jax.pmap(step, axis_name="workers")(state, batches(0, 20))
    assert (metrics.delivered.all_gather < 1).all()
