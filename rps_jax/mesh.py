"""Where workers live: over the devices of all hosts, one or several (virtual workers) on each.

A function of one worker becomes a program over all of them:

    mesh = worker_mesh(num_workers=16)
    step = mesh.spmd(train_step, (P("workers"), P("workers")), (P("workers"), P()))
    state = mesh.replicate(init_train_state(...))

`P` is `jax.sharding.PartitionSpec`: values of `P("workers")` are each worker's own, arrays
`[num_workers, ...]` outside, sharded over the devices by worker; values of `P()` are the same on
every worker, with no worker axis.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rps_jax.axis import AxisName
from rps_jax.checks import check_count

_DEVICES, _LOCAL = "workers", "local"
_PER_WORKER, _SHARED = P(_DEVICES), P()


@dataclasses.dataclass(frozen=True)
class WorkerMesh:
    """Workers laid over devices, in the order of the devices.

    Attributes:
        mesh: a `jax.sharding.Mesh` of one axis, "workers".
        workers_per_device: how many workers share a device, mapped there with `jax.vmap`.
    """

    mesh: Mesh
    workers_per_device: int

    @property
    def num_workers(self) -> int:
        """How many workers there are on all devices."""
        return self.mesh.size * self.workers_per_device

    @property
    def axis_name(self) -> AxisName:
        """The worker axis to give to collectives: "workers", or ("workers", "local")."""
        return _DEVICES if self.workers_per_device == 1 else (_DEVICES, _LOCAL)

    @property
    def local_workers(self) -> range:
        """The indices of the workers that live on this process's devices."""
        process = jax.process_index()
        mine = [i for i, d in enumerate(self.mesh.devices.flat) if d.process_index == process]
        return range(mine[0] * self.workers_per_device, (mine[-1] + 1) * self.workers_per_device)

    def sharding(self, spec: P = P("workers")) -> NamedSharding:  # noqa: B008
        """Returns how values of a spec, `P("workers")` or `P()`, lie on the devices."""
        return NamedSharding(self.mesh, spec)

    def put(self, local: Any) -> Any:
        """Puts per-worker values on their devices.

        Args:
            local: pytree of arrays `[len(local_workers), ...]`, the rows of this process's workers.

        Returns:
            The same as global arrays `[num_workers, ...]`.
        """
        sharding = self.sharding()

        def put(rows: Any) -> jax.Array:
            rows = np.asarray(rows)
            shape = (self.num_workers, *rows.shape[1:])
            return jax.make_array_from_process_local_data(sharding, rows, shape)

        return jax.tree.map(put, local)

    def replicate(self, tree: Any) -> Any:
        """Gives every worker a copy of `tree`: arrays `[num_workers, ...]`."""
        return _replicate(self)(tree)

    def spmd(
        self,
        function: Callable[..., Any],
        in_specs: Sequence[P],
        out_specs: P | tuple[P, ...],
        donate_argnums: int | Sequence[int] = (),
    ) -> "Program":
        """Compiles a function of one worker into one of all workers.

        Args:
            function: takes and returns one worker's values; may use collectives over `axis_name`.
            in_specs: of each argument, `P("workers")` if it is each worker's own, `P()` if all have
                the same.
            out_specs: the same of the result, or of each element of a tuple. What is `P()` must be
                equal on every worker, as a pmean's result is.
            donate_argnums: arguments whose buffers the result may take.

        Returns:
            A compiled function of arrays `[num_workers, ...]` and shared values. Arrays that do not
            lie on the mesh yet are put there, so that a loop compiles it once.

        Raises:
            ValueError: a spec that is neither; when it is called, an array of `P("workers")` that
                has not a row for each worker, or not as many results as `out_specs`.
        """
        one_result = isinstance(out_specs, P)
        outs: tuple[P, ...] = (out_specs,) if isinstance(out_specs, P) else tuple(out_specs)
        ins = tuple(in_specs)
        for name, specs in (("in_specs", ins), ("out_specs", outs)):
            for spec in specs:
                if spec not in (_PER_WORKER, _SHARED):
                    raise ValueError(f'{name} has {spec}: expected P("workers") or P()')

        def as_tuple(*args: Any) -> tuple[Any, ...]:
            result = function(*args)
            if one_result:
                return (result,)
            if len(result) != len(outs):
                raise ValueError(f"{len(result)} results: expected {len(outs)}, as out_specs has")
            return tuple(result)

        if self.workers_per_device == 1:
            # Without a vmap: convolutions stay plain ones, and JAX can check which values vary.
            def on_device(*args: Any) -> tuple[Any, ...]:
                args = tuple(map(_without_axis, args, ins))
                return tuple(map(_with_axis, as_tuple(*args), outs))
        else:
            on_device = jax.vmap(
                as_tuple,
                in_axes=tuple(map(_vmap_axis, ins)),
                out_axes=tuple(map(_vmap_axis, outs)),
                axis_name=_LOCAL,
                axis_size=self.workers_per_device,
            )

        mapped = jax.shard_map(
            on_device,
            mesh=self.mesh,
            in_specs=ins,
            out_specs=outs,
            # Collectives over a vmapped axis do not pass the check (jax 0.10).
            check_vma=self.workers_per_device == 1,
        )

        @functools.partial(jax.jit, donate_argnums=donate_argnums)
        def program(*args: Any) -> Any:
            _check_rows(args, ins, self.num_workers)
            results = mapped(*args)
            return results[0] if one_result else results

        return Program(program, self.mesh, ins)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function of all workers, to be called like one.

    Attributes:
        jitted: what `jax.jit` makes of it.
        mesh: the devices that it runs on.
        in_specs: how each argument lies on them.
    """

    jitted: Any
    mesh: Mesh
    in_specs: tuple[P, ...]

    def __call__(self, *args: Any) -> Any:
        """Runs it; arrays that lie elsewhere are put on the mesh first."""
        return self.jitted(*self._placed(args))

    def lower(self, *args: Any) -> jax.stages.Lowered:
        """Lowers it for arguments like these; see `jax.jit`."""
        return self.jitted.lower(*self._placed(args))

    def _placed(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # What lies on the mesh has another type to JAX than what does not: without this, a loop
        # would compile for its first arguments and again for its own results.
        if len(args) != len(self.in_specs):
            raise TypeError(
                f"{len(args)} arguments: expected {len(self.in_specs)}, as in_specs has"
            )
        shardings = (NamedSharding(self.mesh, spec) for spec in self.in_specs)
        return tuple(map(_place, args, shardings))


def worker_mesh(
    num_workers: int,
    workers_per_device: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> WorkerMesh:
    """Lays workers over devices.

    Args:
        num_workers: how many workers.
        workers_per_device: how many share a device; by default as few as the devices allow.
        devices: the devices to use, all of them by default. Where they are of several processes,
            every process gets the same number of workers.

    Raises:
        ValueError: numbers that do not fit together.
    """
    check_count("num_workers", num_workers)
    devices = list(jax.devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices=[]: expected at least one")
    by_process: dict[int, list[jax.Device]] = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    processes = len(by_process)
    each = min(map(len, by_process.values()))
    fitting = [
        count
        for count in range(1, num_workers + 1)
        if num_workers % (count * processes) == 0 and num_workers // (count * processes) <= each
    ]
    if workers_per_device is None:
        if not fitting:
            raise ValueError(
                f"num_workers={num_workers}: expected a multiple of the {processes} processes"
            )
        workers_per_device = fitting[0]
    if workers_per_device not in fitting:
        raise ValueError(
            f"workers_per_device={workers_per_device}: expected one of "
            f"{', '.join(map(str, fitting)) or 'none'}, for num_workers={num_workers} on "
            f"{processes} x {each} devices"
        )
    per_process = num_workers // (workers_per_device * processes)
    used = [device for mine in by_process.values() for device in mine[:per_process]]
    mesh = Mesh(np.array(used), (_DEVICES,), axis_types=(AxisType.Auto,))
    return WorkerMesh(mesh, workers_per_device)


@functools.cache
def _replicate(mesh: WorkerMesh) -> Callable[[Any], Any]:
    """Returns the program of a mesh, which is kept: it compiles once for trees of the same kind."""

    @functools.partial(jax.jit, out_shardings=mesh.sharding())
    def broadcast(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (mesh.num_workers, *jnp.shape(x))), tree)

    return broadcast


def _place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts the arrays of a tree where they belong, if all of it is this process's."""
    if not sharding.is_fully_addressable:
        return tree
    rows = sharding.mesh.size if sharding.spec == _PER_WORKER else 1

    def place(leaf: Any) -> Any:
        if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array | np.ndarray):
            return leaf
        there = isinstance(leaf, jax.Array) and leaf.sharding == sharding
        # What cannot lie there is refused by the program, which can name it.
        cannot = rows > 1 and (leaf.ndim == 0 or leaf.shape[0] % rows)
        return leaf if there or cannot else jax.device_put(leaf, sharding)

    return jax.tree.map(place, tree)


def _check_rows(args: tuple[Any, ...], specs: tuple[P, ...], num_workers: int) -> None:
    """Raises `ValueError` if an array of `P("workers")` has not a row for each worker."""
    for place, (tree, spec) in enumerate(zip(args, specs, strict=True)):
        for path, leaf in jax.tree.leaves_with_path(tree if spec == _PER_WORKER else ()):
            shape = jnp.shape(leaf)
            if shape[:1] != (num_workers,):
                raise ValueError(
                    f"argument {place}{jax.tree_util.keystr(path)} has shape {shape}: expected "
                    f"({num_workers}, ...), a row for each worker"
                )


def _vmap_axis(spec: P) -> int | None:
    return 0 if spec == _PER_WORKER else None


def _without_axis(tree: Any, spec: P) -> Any:
    return jax.tree.map(lambda x: x[0], tree) if spec == _PER_WORKER else tree


def _with_axis(tree: Any, spec: P) -> Any:
    return jax.tree.map(lambda x: x[None], tree) if spec == _PER_WORKER else tree
