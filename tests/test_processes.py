"""The laws over several real processes: the same losses to the bit, the same averages."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ways import WAYS, awkward_params

import rps_jax as rps

TESTS = Path(__file__).parent


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def run_processes(num_processes, devices, workers_per_device, output):
    coordinator = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    arguments = [num_processes, devices, workers_per_device]
    processes = []
    for process_id in range(num_processes):
        arguments = [coordinator, num_processes, process_id, devices, workers_per_device, output]
        command = [sys.executable, str(TESTS / "process_of_many.py"), *map(str, arguments)]
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


@pytest.mark.parametrize(("num_processes", "devices", "workers_per_device"), [(2, 4, 1), (4, 1, 2)])
def test_the_laws_hold_over_processes(num_processes, devices, workers_per_device, tmp_path):
    run_processes(num_processes, devices, workers_per_device, tmp_path / "results.npz")
    n = num_processes * devices * workers_per_device
    params = awkward_params(n)
    loaded = np.load(tmp_path / "results.npz")
    structure = jax.tree.structure((params, rps.Delivery(0, 0, 0), 0))
    leaves = [loaded[key] for key in loaded]
    runs = [
        jax.tree.unflatten(structure, leaves[i : i + structure.num_leaves])
        for i in range(0, len(leaves), structure.num_leaves)
    ]

    def in_one_process(axis, rate):
        key = jax.random.key(7)
        delivery, shift, _ = rps.draw_exchange(rps.Bernoulli(rate), (), key, 0, axis)
        return delivery, shift

    for rate, (averaged, delivery, shift) in zip((0.0, 0.4, 1.0), runs, strict=True):
        expected, expected_shift = WAYS["vmap"](in_one_process, n)(jnp.full(n, rate))
        jax.tree.map(np.testing.assert_array_equal, delivery, jax.device_get(expected))
        np.testing.assert_array_equal(shift, expected_shift)
        twin = rps.reference.average_models(params, expected, int(expected_shift[0]))
        for leaf, wanted in zip(jax.tree.leaves(averaged), jax.tree.leaves(twin), strict=True):
            tolerance = 2e-2 if wanted.dtype == jnp.bfloat16 else 1e-6
            exact = rate == 1.0 or np.issubdtype(wanted.dtype, np.integer)
            np.testing.assert_allclose(
                leaf, wanted.astype(np.float64), rtol=0 if exact else tolerance,
                atol=0 if exact else tolerance,
            )  # fmt: skip
