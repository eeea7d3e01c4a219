"""The step of a rule that overlaps: its exchange and its local step do not wait for each other."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rps_jax.carrier import Carrier
from rps_jax.local_gradients import LossFn, local_gradients, local_updates
from rps_jax.rules import Rule
from rps_jax.step_exchange import Seen, StepExchange, metrics_of, on_params
from rps_jax.train_state import ModelStatePolicy, StepMetrics, TrainState, check_rule_state


class ModelExchange(NamedTuple):
    """What came of the exchange of one worker's model.

    Attributes:
        params: the model.
        model_state: what was averaged with it; `()` if nothing.
        rule_state: as of `TrainState`.
        channel_state: as of `TrainState`.
        links: as of `TrainState`.
        sent: as of `TrainState`.
        seen: what arrived; None where nothing was exchanged.
    """

    params: Any
    model_state: Any
    rule_state: Any
    channel_state: Any
    links: Any
    sent: Any
    seen: Seen | None


class LocalStep(NamedTuple):
    """What came of the local step of one worker.

    Attributes:
        loss: float32 scalar, of its mini-batch before the step.
        updates: the change of its model.
        model_state: that after the step.
        opt_state: that after the step.
    """

    loss: jax.Array
    updates: Any
    model_state: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True, eq=False)
class OverlappedStep:
    """The step of one worker, in parts; called, it is all of them.

    In one program, XLA may run collectives and gradients at the same time; it does so on GPUs, and
    not on CPUs. There, `exchange` and `local` as programs of their own, started by two threads, do:
    `local` has no collective, so that those of all workers keep one order.

    Attributes:
        loss_fn: as of `rps_jax.make_train_step`.
        optimizer: as of `rps_jax.make_train_step`.
        rule: what is averaged.
        carrier: moves the blocks.
        model_state_policy: as of `rps_jax.make_train_step`; exchanged, the change of the model
            state is added to its average, as that of the model is.
        record: as of `rps_jax.make_step`.
    """

    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    rule: Rule
    carrier: Carrier
    model_state_policy: ModelStatePolicy = "exchange"
    record: bool = False

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        """Takes a step; see `rps_jax.make_step`."""
        return self.join(state, self.exchange(state), self.local(state, batch))

    def exchange(self, state: TrainState) -> ModelExchange:
        """Averages the model as it is before the step."""
        check_rule_state(self.rule, state)
        alongside = state.model_state if self.model_state_policy == "exchange" else ()
        average = StepExchange.of_step(self.carrier, state, alongside, self.record)
        params, memory = on_params(self.rule, state.params, state.rule_state, average)
        return ModelExchange(
            params=params,
            model_state=average.alongside,
            rule_state=memory,
            channel_state=average.state,
            links=average.links,
            sent=average.sent,
            seen=average.seen,
        )

    def local(self, state: TrainState, batch: Any) -> LocalStep:
        """Computes the local step, without any exchange."""
        loss, model_state, grads = local_gradients(self.loss_fn, self.carrier, state, batch)
        updates, opt_state = local_updates(self.optimizer, state, loss, grads)
        return LocalStep(loss, updates, model_state, opt_state)

    def join(
        self, state: TrainState, exchanged: ModelExchange, local: LocalStep
    ) -> tuple[TrainState, StepMetrics]:
        """Adds the local step to what the exchange brought."""
        model_state = local.model_state
        if self.model_state_policy == "exchange":
            before = exchanged.model_state, state.model_state
            model_state = jax.tree.map(_add_change, *before, model_state)
        after = TrainState(
            step=state.step + 1,
            key=state.key,
            params=optax.apply_updates(exchanged.params, local.updates),
            model_state=model_state,
            opt_state=local.opt_state,
            channel_state=exchanged.channel_state,
            rule_state=exchanged.rule_state,
            links=exchanged.links,
            sent=exchanged.sent,
        )
        return after, metrics_of(self.carrier, local.loss, exchanged.seen)


def _add_change(averaged: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
    """Adds `after - before` to an average; where nothing came, it is `after` to the bit."""
    return jnp.where(averaged == before, after, averaged + (after - before))
