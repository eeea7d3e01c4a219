"""An outer optimizer on what many local steps change.

Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import optax

from rps_jax.rules.models import AverageModels
from rps_jax.rules.rule import Average


class Outer(NamedTuple):
    """What a worker remembers from exchange to exchange.

    Attributes:
        anchor: the model after the last.
        optimizer: state of the outer optimizer.
        policies: what those for drops remember.
    """

    anchor: Any
    optimizer: Any
    policies: Any


@dataclasses.dataclass(frozen=True)
class DiLoCo(AverageModels):
    """Takes many local steps, then gives the averaged change to an outer optimizer.

    What goes over the lossy network are models, as in RPS, and the change is what the averaged
    model differs by from the worker's own anchor. (Averaged changes would leave anchors that have
    come to differ as they are; so they are drawn together, by the outer learning rate.)

    Attributes:
        outer_learning_rate: of the outer optimizer, SGD with Nesterov momentum.
        outer_momentum: its momentum.
        outer: another outer optimizer in its place.
    """

    outer_learning_rate: float = dataclasses.field(
        default=0.7, metadata={"help": "Step size of the outer optimizer of diloco."}
    )
    outer_momentum: float = dataclasses.field(
        default=0.9, metadata={"help": "Nesterov momentum of the outer optimizer of diloco."}
    )
    outer: optax.GradientTransformation | None = None

    usual_local_steps: ClassVar[int] = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.outer_learning_rate < float("inf"):
            raise ValueError(
                f"outer_learning_rate={self.outer_learning_rate}: expected a positive number"
            )
        if not 0 <= self.outer_momentum < 1:
            raise ValueError(f"outer_momentum={self.outer_momentum}: expected a number in [0, 1)")

    def init(self, params: Any) -> Outer:
        """Returns the state in which the outer optimizer begins."""
        return Outer(params, self._outer().init(params), self.remember(params))

    def on_params(self, params: Any, memory: Outer, average: Average) -> tuple[Any, Outer]:
        """Averages the locally updated model, and takes an outer step."""
        averaged, policies = self.exchange(params, memory.policies, average)
        change = jax.tree.map(lambda anchor, new: anchor - new, memory.anchor, averaged)
        updates, optimizer = self._outer().update(change, memory.optimizer, memory.anchor)
        params = optax.apply_updates(memory.anchor, updates)
        return params, Outer(params, optimizer, policies)

    def _outer(self) -> optax.GradientTransformation:
        sgd = optax.sgd(self.outer_learning_rate, self.outer_momentum or None, nesterov=True)
        return self.outer or sgd
