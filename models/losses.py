"""Loss and accuracy of a classifier, with the entries that are padding left out.

Dimensions: B examples, L tokens, K classes. Every function takes entries of any shape: one label
per image, [B], or one per token, [B, L].
"""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Softmax cross-entropy, averaged over the entries.

    Args:
        logits: floating point, [..., K].
        labels: integers in [0, K), [...].
        weights: weight of each entry in the average, [...]; 0 leaves an entry out, whatever its
            label is. None weighs all alike.

    Returns:
        The weighted mean, a scalar; 0 if all weights are 0.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return _weighted_mean(losses, weights)


def accuracy(logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """Share of the entries whose largest logit is at their label.

    Args:
        logits: floating point, [..., K].
        labels: integers, [...]; a label outside [0, K) is never right.
        weights: as in `cross_entropy`.

    Returns:
        The weighted mean, a float32 scalar in [0, 1]; 0 if all weights are 0.
    """
    correct = jnp.argmax(logits, axis=-1) == labels
    return _weighted_mean(correct.astype(jnp.float32), weights)


def length_mask(lengths_B: jax.Array, max_length: int) -> jax.Array:
    """Tells tokens from padding.

    Args:
        lengths_B: number of tokens of each sentence, integers.
        max_length: number of positions, L.

    Returns:
        Boolean array of shape [B, L], true at tokens; it will do as `weights`.
    """
    return jnp.arange(max_length)[None, :] < lengths_B[:, None]


def _weighted_mean(values: jax.Array, weights: jax.Array | None) -> jax.Array:
    if weights is None:
        return jnp.mean(values)
    weights = weights.astype(values.dtype)
    total = jnp.sum(weights)
    # An entry of weight 0 may hold NaN, which a product with 0 would let through.
    weighted_sum = jnp.sum(jnp.where(weights == 0, 0, weights * values))
    return weighted_sum / jnp.where(total == 0, 1, total)
