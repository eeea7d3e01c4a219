"""The local step of one worker: its gradients, and what an optimizer makes of them."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from rps_jax import keys
from rps_jax.carrier import Carrier
from rps_jax.train_state import TrainState

LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]]
"""`loss_fn(params, model_state, batch, key) -> (loss, model_state)`, of one worker."""


def local_gradients(
    loss_fn: LossFn, carrier: Carrier, state: TrainState, batch: Any
) -> tuple[jax.Array, Any, Any]:
    """Returns the loss of one worker, its model state after the batch, and its gradients."""
    _, key = keys.split(keys.wrap_key(state.key))
    for part in (state.step, carrier.worker()):
        key = jax.random.fold_in(key, part)
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    with jax.named_scope("local_step"):
        (loss, model_state), grads = gradient(state.params, state.model_state, batch, key)
    return loss, model_state, grads


def local_updates(
    optimizer: optax.GradientTransformation, state: TrainState, loss: jax.Array, grads: Any
) -> tuple[Any, Any]:
    """Returns what an optimizer adds to the model, and its state; it may look at the loss."""
    update = optax.with_extra_args_support(optimizer).update
    with jax.named_scope("local_step"):
        return update(grads, state.opt_state, state.params, value=loss, grad=grads)
