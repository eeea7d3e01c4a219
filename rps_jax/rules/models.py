"""RPS: Yu et al., "Distributed Learning over Unreliable Networks", ICML 2019, section 3."""

import dataclasses
from typing import Any

from rps_jax.rules.rule import Average, Rule


@dataclasses.dataclass(frozen=True)
class AverageModels(Rule):
    """Averages models after the local step; a worker that misses a block keeps its own."""

    def on_params(self, params: Any, memory: Any, average: Average) -> tuple[Any, Any]:
        """Averages the locally updated model."""
        return average(params, otherwise=params), memory
