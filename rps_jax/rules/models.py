"""RPS: Yu et al., "Distributed Learning over Unreliable Networks", ICML 2019, section 3."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from rps_jax.checks import check_count
from rps_jax.rounding import with_dither, without_dither
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

    def before_rounding(self, tree: Any, average: Average) -> Any:
        """Adds the dither that all workers share; see `rps_jax.rounding`."""
        return with_dither(tree, self.message_dtype, average.rule_key)

    def after_rounding(self, tree: Any, message: Any, arrived: Any, average: Average) -> Any:
        """Takes the dither off the average; one that is the worker's own message changes nothing.

        So where no average arrived, the model stays what it is, bit for bit.
        """
        plain = without_dither(arrived, self.message_dtype, average.rule_key)

        def chosen(own: Any, mine: jax.Array, new: jax.Array, plain: jax.Array) -> jax.Array:
            return jnp.where(new == mine.astype(new.dtype), own, plain)

        return jax.tree.map(chosen, tree, message, arrived, plain)

    def on_params(self, params: Any, memory: Any, average: Average) -> tuple[Any, Any]:
        """Averages the locally updated model."""
        return self.exchange(params, memory, average)
