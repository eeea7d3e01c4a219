"""A few steps of algorithms, for placements of the same workers to be compared by."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P

import rps_jax as rps

STEPS = 4


class Recorded(rps.Bernoulli):
    """Remembers the last Delivery in its state."""

    def init(self, num_workers):
        return rps.Delivery(*[jnp.zeros(num_workers, bool)] * 3)

    def sample(self, state, key, worker, num_workers):
        delivery, _ = super().sample((), key, worker, num_workers)
        return delivery, delivery


jax.tree_util.register_pytree_node(
    Recorded, lambda self: ((self.drop_rate,), None), lambda _, leaves: Recorded(*leaves)
)


def loss_fn(params, model_state, batch, key):
    del key
    hidden = jnp.tanh(batch["x"] @ params["in"] + params["bias"][None])
    error = hidden @ params["out"] - batch["y"]
    return (error**2).mean(), {"mean": 0.9 * model_state["mean"] + 0.1 * hidden.mean(0)}


def steps_of_all(mesh, algorithms):
    """Returns `{name: array [num_workers, ...]}` of all that the steps left behind, everywhere."""
    n = mesh.num_workers
    rng = np.random.default_rng(0)
    params = {"in": rng.normal(size=(5, 6)), "bias": np.zeros(6), "out": rng.normal(size=6)}
    params = jax.tree.map(np.float32, params)
    x = rng.normal(size=(n, STEPS, 7, 5)).astype(np.float32)
    data = {"x": x, "y": np.sin(x.sum(-1) + np.arange(n)[:, None, None]).astype(np.float32)}
    mine = slice(mesh.local_workers.start, mesh.local_workers.stop)
    batches = mesh.put(jax.tree.map(lambda rows: rows[mine], data))
    optimizer = optax.sgd(0.3, momentum=0.9)
    channel = Recorded(0.3)
    left_behind = {}
    for algorithm in algorithms:
        step = rps.make_train_step(loss_fn, optimizer, channel, mesh.axis_name, algorithm=algorithm)

        def step_of_worker(state, batches, step=step):
            return step(state, jax.tree.map(lambda rows: rows[state.step], batches))

        program = mesh.spmd(step_of_worker, (P("workers"), P("workers")), (P("workers"), P()))
        initial = rps.init_train_state(
            params, {"mean": np.zeros(6, np.float32)}, optimizer, channel, n, 3, algorithm=algorithm
        )
        state = mesh.replicate(initial)
        for i in range(STEPS):
            state, metrics = program(state, batches)
            kept = {f"delivery-{i}": state.channel_state, f"loss-{i}": metrics.loss[None]}
            if i == STEPS - 1:
                kept |= {"params": state.params, "model_state": state.model_state}
            kept = multihost_utils.process_allgather(kept, tiled=True)
            for path, leaf in jax.tree_util.tree_leaves_with_path(kept):
                left_behind[algorithm + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return left_behind
