"""RPS: Yu et al., "Distributed Learning over Unreliable Networks", ICML 2019, section 3."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from rps_jax.checks import check_count
from rps_jax.rounding import dithered, rounded
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

    def message(self, tree: Any, average: Average) -> Any:
        """Returns a model as it is sent in one exchange; see `rps_jax.rounding`."""
        if self.message_dtype is None:
            return tree
        return rounded(dithered(tree, self.message_dtype, average.rule_key), self.message_dtype)

    def adopt(self, tree: Any, message: Any, average: Any) -> Any:
        """Returns the average of rounded messages, plus what was rounded away of the worker's own.

        Where no average arrived, the model stays what it is, bit for bit.
        """

        def kept(own: Any, mine: jax.Array, new: jax.Array) -> jax.Array:
            dtype = jnp.result_type(own)
            rest = own - mine.astype(dtype)
            # Of a worker that is no longer finite, nothing is kept.
            average = new.astype(dtype) + jnp.where(jnp.isfinite(rest), rest, 0)
            return jnp.where(new == mine, own, average)

        return jax.tree.map(kept, tree, message, average)

    def on_params(self, params: Any, memory: Any, average: Average) -> tuple[Any, Any]:
        """Averages the locally updated model."""
        return self.exchange(params, memory, average)
