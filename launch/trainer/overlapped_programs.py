"""A step whose exchange runs in a thread of its own, beside the local step."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import jax

from launch.distributed.programs import compile_or_find
from rps_jax.mesh import Program


class OverlappedPrograms(NamedTuple):
    """The programs of an `rps.OverlappedStep`, called as one.

    On CPUs, the operations of a program run one after the other, collectives and calls of the host
    among them, and so do the programs that one thread starts.

    Attributes:
        exchange: Of the step's other arguments than the batch's; all communication but for the
            metrics' is in it.
        local: Of all arguments but the signal.
        join: Of all arguments, and before them what the others return.
    """

    exchange: Any
    local: Any
    join: Any

    def compiled(self, run: Any, state: Any, arrays: Any, order: Any, signal: Any) -> Self:
        """Returns the programs compiled for arguments like these."""
        exchange, exchanged = _compile(self.exchange, run, state)
        local, changed = _compile(self.local, run, state, arrays, order)
        join, _ = _compile(self.join, exchanged, changed, run, state, signal)
        return type(self)(exchange, local, join)

    def __call__(self, run: Any, state: Any, arrays: Any, order: Any, signal: Any) -> Any:
        """Takes a step; the buffers of the state are given up."""
        exchange = _THREAD.submit(lambda: jax.block_until_ready(self.exchange(run, state)))
        # Waited for: started by the same thread, the join would run first.
        changed = jax.block_until_ready(self.local(run, state, arrays, order))
        return self.join(exchange.result(), changed, run, state, signal)


_THREAD = ThreadPoolExecutor(1, "exchange")


def _compile(program: Program, *arguments: Any) -> tuple[Any, Any]:
    """Returns a program compiled, and the shapes of its results, as they lie."""
    lowered = program.lower(*arguments)
    compiled = compile_or_find(lowered, program.mesh)

    def like(out: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(out.shape, out.dtype, sharding=sharding)

    return compiled, jax.tree.map(like, lowered.out_info, compiled.output_shardings)
