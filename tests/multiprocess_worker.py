"""One of several JAX processes that share the workers; run by test_processes.py.

python multiprocess_worker.py COORDINATOR NUM_PROCESSES PROCESS_ID DEVICES WORKERS_PER_DEVICE \
    OUTPUT RULE ...

Writes to the folder OUTPUT: laws.npz and steps.npz.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P
from mappings import awkward_params
from steps_of_all import steps_of_all

import rps_jax as rps


def main(coordinator, num_processes, process_id, devices, workers_per_device, output, *rules):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    jax.distributed.initialize(coordinator, int(num_processes), int(process_id))
    num_workers = jax.device_count() * int(workers_per_device)
    mesh = rps.worker_mesh(num_workers, int(workers_per_device))
    mine = mesh.local_workers
    assert len(mine) == num_workers // int(num_processes)
    local = jax.tree.map(lambda x: x[mine.start : mine.stop], awkward_params(num_workers))

    def one_worker(params, drop_rate):
        delivery, _ = rps.draw_exchange(
            rps.Bernoulli(drop_rate), (), jax.random.key(7), 0, mesh.axis_name
        )
        averaged = rps.average_models(params, delivery, mesh.axis_name)
        return averaged, delivery._replace(
            shift=delivery.shift + 0 * jax.lax.axis_index(mesh.axis_name)
        )

    program = mesh.spmd(one_worker, (P("workers"), P()), P("workers"))
    leaves = []
    for drop_rate in (0.0, 0.4, 1.0):
        result = program(mesh.put(local), np.float32(drop_rate))
        leaves += jax.tree.leaves(multihost_utils.process_allgather(result, tiled=True))
    steps = steps_of_all(mesh, rules)
    if jax.process_index() == 0:
        # float64 holds every value of the tree exactly, and any reader knows it.
        np.savez(Path(output, "laws.npz"), *[np.asarray(x).astype(np.float64) for x in leaves])
        np.savez(Path(output, "steps.npz"), **steps)


if __name__ == "__main__":
    main(*sys.argv[1:])
