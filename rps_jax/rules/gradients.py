"""The baseline of Yu et al., ICML 2019: gradients through the same two lossy phases."""

import dataclasses
from typing import Any

from rps_jax.averaging import ON_MISS, OnMiss, check_on_miss, gradient_on_miss
from rps_jax.rules.rule import Average, Rule


@dataclasses.dataclass(frozen=True)
class AverageGradients(Rule):
    """Averages gradients before the local step; replicas that miss different ones drift apart.

    Attributes:
        on_miss: what a worker applies where no average arrives: its "own" gradient or "zero".

    Raises:
        ValueError: an unknown `on_miss`.
    """

    on_miss: OnMiss = dataclasses.field(
        default="own",
        metadata={
            "help": "What is applied where no averaged gradient arrived: the own one, or zero.",
            "choices": ON_MISS,
        },
    )

    def __post_init__(self) -> None:
        check_on_miss(self.on_miss)

    def on_gradients(self, grads: Any, memory: Any, average: Average) -> tuple[Any, Any]:
        """Averages the gradients."""
        return average(grads, otherwise=gradient_on_miss(grads, self.on_miss)), memory
