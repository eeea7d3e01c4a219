"""One of two JAX processes that average a model of large blocks; run by test_processes.py.

python large_block_worker.py COORDINATOR NUM_PROCESSES PROCESS_ID

Ends with status 1 where an average is wrong.
"""

import sys

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

import rps_jax as rps

BLOCK_BYTES, CALLS = 25_000_000, 20


def main(coordinator, num_processes, process_id):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(coordinator, int(num_processes), int(process_id))
    n = jax.device_count()
    mesh = rps.worker_mesh(n)
    # Small integers, whose mean over two workers is exact.
    values = np.arange(n * BLOCK_BYTES // 4) % 1000
    params = mesh.put((values + jax.process_index())[None].astype(np.float32))

    def one_worker(params, step):
        delivery, _ = rps.draw_exchange(rps.Reliable(), (), jax.random.key(0), step, mesh.axis_name)
        return rps.average_models(params, delivery, mesh.axis_name)

    program = mesh.spmd(one_worker, (P("workers"), P()), P("workers"))
    for call in range(CALLS):
        (mine,) = program(params, np.int32(call)).addressable_shards
        wrong = (np.asarray(mine.data)[0] != values + (n - 1) / 2).sum()
        if wrong:
            sys.exit(f"call {call}: {wrong} of {len(values)} averages are wrong")


if __name__ == "__main__":
    main(*sys.argv[1:])
