"""Several real processes: the laws, and the same training wherever the workers are."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from mappings import MAPPINGS, awkward_params
from steps_of_all import steps_of_all

import rps_jax as rps
from launch.distributed.ports import free_port

TESTS = Path(__file__).parent


def run_processes(script, num_processes, *arguments):
    """Runs a script of this folder as the processes of a job; all must succeed."""
    coordinator = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    processes = []
    for process_id in range(num_processes):
        of_process = [coordinator, num_processes, process_id, *arguments]
        command = [sys.executable, str(TESTS / script), *map(str, of_process)]
        processes.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        )
    try:
        errors = [process.communicate(timeout=180)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error[-3000:]


N = 8
# Eight workers: processes x devices x workers on a device; in the long run all rules.
PLACEMENTS = [
    ((2, 4, 1), ("rps", "gradient-averaging")),
    pytest.param((4, 1, 2), tuple(rps.RULES), marks=pytest.mark.long),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs the processes of a placement, once."""
    folders = {}

    def run(placement, rules):
        if placement not in folders:
            folders[placement] = tmp_path_factory.mktemp("results")
            run_processes("multiprocess_worker.py", *placement, folders[placement], *rules)
        return folders[placement]

    return run


@functools.cache
def one_process(rules):
    """What the steps leave behind with a device for each worker of one process."""
    return steps_of_all(rps.worker_mesh(N, 1), rules)


def assert_same_training(found, expected):
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        if wanted.dtype == bool:
            np.testing.assert_array_equal(found[name], wanted, err_msg=name)
        else:
            # Four steps, each of which sums the same numbers in another order.
            np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("placement", "rules"), PLACEMENTS)
def test_every_algorithm_trains_alike_over_processes(placement, rules, results):
    assert_same_training(np.load(results(placement, rules) / "steps.npz"), one_process(rules))


@pytest.mark.long
@pytest.mark.parametrize("workers_per_device", [2, 8])
def test_every_algorithm_trains_alike_with_virtual_workers(workers_per_device):
    rules = tuple(rps.RULES)
    found = steps_of_all(rps.worker_mesh(N, workers_per_device), rules)
    assert_same_training(found, one_process(rules))


def test_messages_were_dropped_in_these_trainings():
    steps = one_process(PLACEMENTS[0][1])
    sent = np.stack([steps[f"rps['delivery-{i}'].sent"] for i in range(4)])
    assert 0.5 < sent.mean() < 0.95


@pytest.mark.parametrize(("placement", "rules"), PLACEMENTS)
def test_the_laws_hold_over_processes(placement, rules, results):
    n = N
    params = awkward_params(n)
    loaded = np.load(results(placement, rules) / "laws.npz")
    structure = jax.tree.structure((params, rps.Delivery(0, 0, 0, 0)))
    leaves = [loaded[key] for key in loaded]
    runs = [
        jax.tree.unflatten(structure, leaves[i : i + structure.num_leaves])
        for i in range(0, len(leaves), structure.num_leaves)
    ]

    def in_one_process(axis, rate):
        key = jax.random.key(7)
        return rps.draw_exchange(rps.Bernoulli(rate), (), key, 0, axis)[0]

    for rate, (averaged, delivery) in zip((0.0, 0.4, 1.0), runs, strict=True):
        expected = MAPPINGS["vmap"](in_one_process, n)(jnp.full(n, rate))
        jax.tree.map(np.testing.assert_array_equal, delivery, jax.device_get(expected))
        twin = reference.average_models(params, expected)
        for leaf, wanted in zip(jax.tree.leaves(averaged), jax.tree.leaves(twin), strict=True):
            tolerance = 2e-2 if wanted.dtype == jnp.bfloat16 else 1e-6
            exact = rate == 1.0 or np.issubdtype(wanted.dtype, np.integer)
            np.testing.assert_allclose(
                leaf, wanted.astype(np.float64), rtol=0 if exact else tolerance,
                atol=0 if exact else tolerance,
            )  # fmt: skip


@pytest.mark.long
def test_averages_of_large_blocks_are_right():
    """Gloo's reduce-scatter is not, now and then, between two processes (jax issue 40830)."""
    run_processes("large_block_worker.py", 2)
