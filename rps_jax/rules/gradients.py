"""The baseline of Yu et al., ICML 2019: gradients through the same two lossy phases."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rps_jax.rules.lossy import LossyRule
from rps_jax.rules.rule import Average


@dataclasses.dataclass(frozen=True)
class AverageGradients(LossyRule):
    """Averages gradients before the local step; replicas that miss different ones drift apart."""

    def init(self, params: Any) -> Any:
        """Returns what is remembered: `()` if nothing."""
        return self.remember(jax.tree.map(jnp.zeros_like, params))

    def on_gradients(self, grads: Any, memory: Any, average: Average) -> tuple[Any, Any]:
        """Averages the gradients."""
        return self.exchange(grads, memory, average)
