"""RPS: Yu et al., "Distributed Learning over Unreliable Networks", ICML 2019, section 3."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from rps_jax.checks import check_count
from rps_jax.rules.lossy import LossyRule, Missed
from rps_jax.rules.rule import Average


@dataclasses.dataclass(frozen=True)
class AverageModels(LossyRule):
    """Averages models after the local step; a worker that misses a block keeps its own.

    Attributes:
        local_steps: how many local steps a worker takes to an exchange; None for one. Stich, "Local
            SGD Converges Fast and Communicates Little", ICLR 2019.
    """

    local_steps: int | None = dataclasses.field(
        default=None, metadata={"help": "Local steps to an exchange; None: as the rule has it."}
    )

    may_miss: ClassVar[tuple[Missed, ...]] = ("own", "stale")
    usual_local_steps: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_steps is not None:
            check_count("local_steps", self.local_steps)

    @property
    def every(self) -> int:
        """How many steps there are to an exchange."""
        return self.local_steps or self.usual_local_steps

    def init(self, params: Any) -> Any:
        """Returns what is remembered: `()` if nothing."""
        return self.remember(params)

    def adopt(self, tree: Any, message: Any, average: Any) -> Any:
        """Adds to a worker's model what the average differs by from its own message.

        What was rounded away of the model stays with the worker, so that small steps add up. Where
        no average arrived, the model stays what it is, bit for bit.
        """

        def moved(own: Any, mine: jax.Array, new: jax.Array) -> jax.Array:
            dtype = jnp.result_type(own)
            # Equal infinities have no difference.
            return jnp.where(new == mine, own, own + (new.astype(dtype) - mine.astype(dtype)))

        return jax.tree.map(moved, tree, message, average)

    def on_params(self, params: Any, memory: Any, average: Average) -> tuple[Any, Any]:
        """Averages the locally updated model."""
        return self.exchange(params, memory, average)
