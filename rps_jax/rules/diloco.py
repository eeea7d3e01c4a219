"""An outer optimizer on what many local steps change.

Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023.

In fragments that take turns: Douillard et al., "Streaming DiLoCo with overlapping communication",
2025. There a fragment is some of the layers; here it is a part of every leaf: all are of one size.
"""

import dataclasses
import functools
import math
import sys
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rps_jax.checks import BELOW_ONE, check_count, check_number, check_optimizer
from rps_jax.rules.lossy import copied
from rps_jax.rules.models import AverageModels
from rps_jax.rules.rule import Average


class OuterState(NamedTuple):
    """What a worker remembers from exchange to exchange.

    Attributes:
        anchor: the model after the last.
        optimizer: state of the outer optimizer.
        policies: what those for drops remember.
    """

    anchor: Any
    optimizer: Any
    policies: Any


class Fragments(NamedTuple):
    """What a worker remembers where fragments of the model take turns.

    Attributes:
        turn: int32 scalar, the fragment of the next exchange.
        outer: `OuterState` of all fragments, each leaf with a leading axis of them.
    """

    turn: jax.Array
    outer: OuterState


@dataclasses.dataclass(frozen=True)
class DiLoCo(AverageModels):
    """Takes many local steps, then gives the averaged change to an outer optimizer.

    What goes over the lossy network are models, as in RPS, and the change is what the averaged
    model differs by from the worker's own anchor. (Averaged changes would leave anchors that have
    come to differ as they are; so they are drawn together, by the outer learning rate.)

    Attributes:
        outer_learning_rate: of the outer optimizer, SGD with Nesterov momentum.
        outer_momentum: its momentum.
        fragments: into how many the model is cut, a divisor of the local steps. One is exchanged
            every `local_steps` / `fragments` steps, each every `local_steps`, so that as much is
            sent in smaller exchanges. An `outer` optimizer sees fragments of leaves as vectors.
        outer: another outer optimizer in its place.
    """

    outer_learning_rate: float = dataclasses.field(
        default=0.7, metadata={"help": "Step size of the outer optimizer of diloco."}
    )
    outer_momentum: float = dataclasses.field(
        default=0.9, metadata={"help": "Nesterov momentum of the outer optimizer of diloco."}
    )
    fragments: int = dataclasses.field(
        default=1,
        metadata={"help": "Exchange the model of diloco in so many fragments, one after another."},
    )
    outer: optax.GradientTransformation | None = None

    usual_local_steps: ClassVar[int] = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = math.ulp(0), sys.float_info.max, "a positive number"
        check_number("outer_learning_rate", self.outer_learning_rate, *positive)
        check_number("outer_momentum", self.outer_momentum, 0, BELOW_ONE, "a number in [0, 1)")
        if self.outer is not None:
            check_optimizer("outer", self.outer)

        steps = super().every
        check_count("fragments", self.fragments, f"a divisor of {steps} local steps")
        if steps % self.fragments:
            raise ValueError(
                f"fragments={self.fragments}: expected a divisor of {steps} local steps"
            )

    @property
    def in_turn(self) -> bool:
        """Whether fragments of the model take turns."""
        return self.fragments > 1

    @property
    def every(self) -> int:
        """How many steps there are to an exchange, of the model or of a fragment."""
        return super().every // self.fragments

    def sends(self, params: Any) -> Any:
        """Returns what is averaged in one exchange, as it is sent."""
        return super().sends(params if self.fragments == 1 else _part(self._cut(params), 0))

    def init(self, params: Any) -> OuterState | Fragments:
        """Returns the state in which the outer optimizer begins."""
        if self.fragments == 1:
            return self._begin(params)
        return Fragments(jnp.int32(0), jax.vmap(self._begin)(self._cut(params)))

    def on_params(self, params: Any, memory: Any, average: Average) -> tuple[Any, Any]:
        """Averages the locally updated model, or a fragment of it, and takes an outer step."""
        if self.fragments == 1:
            return self._outer_step(params, memory, average)
        turn, before = memory.turn, (self._cut(params), memory.outer)
        part, outer = _part(before, turn)
        after = self._outer_step(part, outer, average)
        cut, outer = jax.tree.map(lambda all, one: all.at[turn].set(one), before, after)
        joined = jax.tree.map(
            lambda x, new: new.reshape(-1)[: x.size].reshape(x.shape), params, cut
        )
        return joined, Fragments((turn + 1) % self.fragments, outer)

    def _begin(self, params: Any) -> OuterState:
        return OuterState(copied(params), self._outer().init(params), self.remember(params))

    def _outer_step(
        self, params: Any, memory: OuterState, average: Average
    ) -> tuple[Any, OuterState]:
        averaged, policies = self.exchange(params, memory.policies, average)
        change = jax.tree.map(lambda anchor, new: anchor - new, memory.anchor, averaged)
        updates, optimizer = self._outer().update(change, memory.optimizer, memory.anchor)
        outer = OuterState(optax.apply_updates(memory.anchor, updates), optimizer, policies)
        away = average.delivery.away
        if away is not None:
            # Its anchor and momentum are old: it begins anew from the others' model.
            anew = OuterState(averaged, self._outer().init(averaged), policies)
            outer = jax.tree.map(functools.partial(jnp.where, away), anew, outer)
        return outer.anchor, outer

    def _cut(self, params: Any) -> Any:
        """Returns each leaf as `[fragments, elements]`, with zeros behind its last element."""

        def cut(x: jax.Array) -> jax.Array:
            size = -(-x.size // self.fragments)
            return jnp.pad(x.reshape(-1), (0, self.fragments * size - x.size)).reshape(
                self.fragments, size
            )

        return jax.tree.map(cut, params)

    def _outer(self) -> optax.GradientTransformation:
        sgd = optax.sgd(self.outer_learning_rate, self.outer_momentum or None, nesterov=True)
        return self.outer or sgd


def _part(tree: Any, turn: jax.Array | int) -> Any:
    return jax.tree.map(lambda x: x[turn], tree)
