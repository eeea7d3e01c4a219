"""The slot tagger: embedding, one LSTM layer, and a classifier of every token.

Hochreiter, Schmidhuber: Long Short-Term Memory, 1997, with the forget gate of Gers et al., 2000.

Dimensions: B sentences, L tokens, E embedding size, H hidden size, K tags, G = 4 H gates.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from models.losses import length_mask
from models.members import ManyModels, member_by_member, varying_like


class SlotTagger(nn.Module):
    """Gives every token of a sentence one logit per tag.

    Attributes:
        vocab_size: number of distinct tokens.
        num_tags: number of tags, K.
        embedding_size: size of a token's embedding, E.
        hidden_size: size of the LSTM's state, H.
        dtype: type of the matrix products of the LSTM, for instance `jnp.bfloat16`; parameters,
            cell state and logits are float32.
        many_models: how a vmap over models runs the LSTM; see `models.members`.
    """

    vocab_size: int
    num_tags: int
    embedding_size: int = 150
    hidden_size: int = 300
    dtype: DTypeLike = jnp.float32
    many_models: ManyModels = "auto"

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """Tags a batch of padded sentences.

        Args:
            tokens_BxL: token ids in [0, vocab_size), integers; what follows a sentence's end is
                padding, and may be any id in that range.
            lengths_B: number of tokens of each sentence, integers.

        Returns:
            Logits of shape [B, L, K], float32; zero at padding.
        """
        embeddings_BxLxE = nn.Embed(self.vocab_size, self.embedding_size, dtype=self.dtype)(
            tokens_BxL
        )
        hidden_BxLxH = LSTM(self.hidden_size, self.dtype, self.many_models)(
            embeddings_BxLxE, lengths_B
        )
        logits_BxLxK = nn.Dense(self.num_tags, dtype=jnp.float32)(hidden_BxLxH)
        mask_BxL = length_mask(lengths_B, tokens_BxL.shape[1])
        return jnp.where(mask_BxL[:, :, None], logits_BxLxK, 0)


class LSTM(nn.Module):
    """One LSTM layer, left to right, from a zero state.

    The same function as `nn.RNN(nn.OptimizedLSTMCell(H))`, as far as the longest sequence of the
    batch goes; nothing is computed of what is padding in all of them, but for the rest of eight
    steps. The inputs are projected before the recurrence, eight steps in one matrix product.

    The bias of the forget gate starts at one, so that the state is kept until the layer has learnt
    what to forget: Jozefowicz, Zaremba, Sutskever: An Empirical Exploration of Recurrent Network
    Architectures, 2015.

    Attributes:
        hidden_size: size of the state, H.
        dtype: type of the matrix products; the cell state is float32.
        many_models: how a vmap over models runs the layer; see `models.members`. In a loop, the
            weights of one model stay in the cache over all steps, and each goes no further than its
            own longest sequence.
    """

    hidden_size: int
    dtype: DTypeLike = jnp.float32
    many_models: ManyModels = "auto"

    @nn.compact
    def __call__(self, inputs_BxLxE: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """Runs the layer over a batch of sequences.

        Args:
            inputs_BxLxE: the sequences.
            lengths_B: number of steps of each, integers.

        Returns:
            The hidden state after each step, of shape [B, L, H], in `dtype`; what follows the end
            of a sequence is of no meaning.
        """
        num_gates = 4 * self.hidden_size
        input_kernel_ExG, bias_G = _Affine(num_gates, name="input")(inputs_BxLxE)
        kernel_HxG = self.param(
            "recurrent_kernel", nn.initializers.orthogonal(), (self.hidden_size, num_gates)
        )
        inputs_BxLxE = inputs_BxLxE.astype(self.dtype)
        weights = (
            varying_like(each.astype(self.dtype), inputs_BxLxE)
            for each in (input_kernel_ExG, bias_G, kernel_HxG)
        )
        length = inputs_BxLxE.shape[1]
        inputs_LxBxE = jnp.swapaxes(inputs_BxLxE, 0, 1)
        inputs_LxBxE = jnp.pad(inputs_LxBxE, ((0, -length % _CHUNK), (0, 0), (0, 0)))
        hidden_LxBxH = _recurrence(inputs_LxBxE, *weights, lengths_B, self.many_models)
        return jnp.swapaxes(hidden_LxBxH[:length], 0, 1)


class _Affine(nn.Module):
    """The parameters of `nn.Dense`, for a product that is computed elsewhere."""

    features: int

    @nn.compact
    def __call__(self, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the kernel and the bias."""
        shape = inputs.shape[-1], self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return kernel, self.param("bias", _forget_bias_of_one, (self.features,), jnp.float32)


_CHUNK = 8
"""Steps of a matrix product; lengths are padded to a multiple of it."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _recurrence(
    inputs_LxBxE: jax.Array,
    input_kernel_ExG: jax.Array,
    bias_G: jax.Array,
    kernel_HxG: jax.Array,
    lengths_B: jax.Array,
    many_models: ManyModels,
) -> jax.Array:
    """Returns the hidden states [L, B, H] as far as the longest sequence goes, zeros after it.

    JAX cannot differentiate a loop whose length it does not know. The gradient by hand also has
    that of the kernel as one matrix product of many steps, where a scan would add one up at each.
    """
    arguments = inputs_LxBxE, input_kernel_ExG, bias_G, kernel_HxG, lengths_B
    return _keep(*arguments, many_models)[0]


def _keep(
    inputs_LxBxE: jax.Array,
    input_kernel_ExG: jax.Array,
    bias_G: jax.Array,
    kernel_HxG: jax.Array,
    lengths_B: jax.Array,
    many_models: ManyModels,
) -> tuple[jax.Array, Any]:
    arguments = inputs_LxBxE, input_kernel_ExG, bias_G, kernel_HxG, lengths_B
    gates, cell, hidden = member_by_member(_forward, many_models)(*arguments)
    kept = gates, cell, hidden, inputs_LxBxE, input_kernel_ExG, kernel_HxG, lengths_B
    return hidden[1:], kept


def _gradients(many_models: ManyModels, kept: Any, d_hidden_LxBxH: jax.Array) -> tuple[Any, ...]:
    return *member_by_member(_backward, many_models)(*kept, d_hidden_LxBxH), None


_recurrence.defvjp(_keep, _gradients)


def _forward(
    inputs_LxBxE: jax.Array,
    input_kernel_ExG: jax.Array,
    bias_G: jax.Array,
    kernel_HxG: jax.Array,
    lengths_B: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns gates, cell states and hidden states.

    Gates, and the candidate among them, are as they are used: in (0, 1), and (-1, 1). Row t + 1 of
    states is that after step t.
    """
    num_steps = _num_steps(lengths_B, inputs_LxBxE)
    projected_LxBxG = _product(inputs_LxBxE, input_kernel_ExG, num_steps)
    # `zeros_like`, not `zeros`: under shard_map the states have to vary over the mesh axes that the
    # inputs vary over.
    states_LxBxH = jnp.zeros_like(projected_LxBxG[..., : kernel_HxG.shape[0]])
    hidden = jnp.concatenate([states_LxBxH, states_LxBxH[:1]])
    cell = hidden.astype(jnp.float32)

    # What is carried beside the rows: to read a row where others are written copies all of them.
    def step(t: jax.Array, carry: Any) -> Any:
        gates, cell, hidden, cell_BxH, hidden_BxH = carry
        gates_BxG = bias_G[None] + hidden_BxH @ kernel_HxG
        gates_BxG = _row(gates, t) + gates_BxG.astype(jnp.float32)
        input_gate, forget_gate, candidate, output_gate = jnp.split(gates_BxG, 4, axis=-1)
        input_gate, forget_gate = nn.sigmoid(input_gate), nn.sigmoid(forget_gate)
        candidate, output_gate = jnp.tanh(candidate), nn.sigmoid(output_gate)
        cell_BxH = forget_gate * cell_BxH + input_gate * candidate
        hidden_BxH = (output_gate * jnp.tanh(cell_BxH)).astype(hidden.dtype)
        gates_BxG = jnp.concatenate([input_gate, forget_gate, candidate, output_gate], axis=-1)
        return (
            _set_row(gates, t, gates_BxG),
            _set_row(cell, t + 1, cell_BxH),
            _set_row(hidden, t + 1, hidden_BxH),
            cell_BxH,
            hidden_BxH,
        )

    carry = projected_LxBxG.astype(jnp.float32), cell, hidden, cell[0], hidden[0]
    gates, cell, hidden, _, _ = jax.lax.fori_loop(0, num_steps, step, carry)
    return gates, cell, hidden


def _backward(
    gates: jax.Array,
    cell: jax.Array,
    hidden: jax.Array,
    inputs_LxBxE: jax.Array,
    input_kernel_ExG: jax.Array,
    kernel_HxG: jax.Array,
    lengths_B: jax.Array,
    d_hidden_LxBxH: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of the inputs, of their kernel and bias, and of the kernel."""
    num_steps = _num_steps(lengths_B, gates)

    def step(steps_done: jax.Array, carry: Any) -> Any:
        d_gates, d_cell_BxH, d_hidden_BxH = carry
        t = num_steps - 1 - steps_done
        input_gate, forget_gate, candidate, output_gate = jnp.split(_row(gates, t), 4, axis=-1)
        d_hidden_BxH = (d_hidden_BxH + _row(d_hidden_LxBxH, t)).astype(jnp.float32)
        tanh_BxH = jnp.tanh(_row(cell, t + 1))
        d_cell_BxH += d_hidden_BxH * output_gate * (1 - tanh_BxH**2)
        d_gates_BxG = jnp.concatenate(
            [
                d_cell_BxH * candidate * input_gate * (1 - input_gate),
                d_cell_BxH * _row(cell, t) * forget_gate * (1 - forget_gate),
                d_cell_BxH * input_gate * (1 - candidate**2),
                d_hidden_BxH * tanh_BxH * output_gate * (1 - output_gate),
            ],
            axis=-1,
        ).astype(d_gates.dtype)
        d_gates = _set_row(d_gates, t, d_gates_BxG)
        return d_gates, d_cell_BxH * forget_gate, d_gates_BxG @ kernel_HxG.T

    zeros = jnp.zeros_like(gates, hidden.dtype), jnp.zeros_like(cell[0]), jnp.zeros_like(hidden[0])
    d_gates, _, _ = jax.lax.fori_loop(0, num_steps, step, zeros)
    return (
        _product(d_gates, input_kernel_ExG.T, num_steps),
        _sum_of_products(inputs_LxBxE, d_gates, num_steps),
        d_gates.sum((0, 1)),
        _sum_of_products(hidden[:-1], d_gates, num_steps),
    )


def _product(x_LxBxE: jax.Array, kernel_ExG: jax.Array, num_steps: jax.Array) -> jax.Array:
    """Returns x @ kernel as far as `num_steps`, and zeros after the chunk that they end in."""

    def chunk(number: jax.Array, product: jax.Array) -> jax.Array:
        rows = _chunk(x_LxBxE, number) @ kernel_ExG
        return jax.lax.dynamic_update_slice_in_dim(product, rows, number * _CHUNK, 0)

    shape = *x_LxBxE.shape[:-1], kernel_ExG.shape[1]
    return jax.lax.fori_loop(
        0, -(-num_steps // _CHUNK), chunk, jnp.zeros_like(x_LxBxE, shape=shape)
    )


def _sum_of_products(x_LxBxH: jax.Array, d_LxBxG: jax.Array, num_steps: jax.Array) -> jax.Array:
    """Returns the sum over all steps and sentences of the outer products, [H, G]."""

    def chunk(number: jax.Array, total: jax.Array) -> jax.Array:
        rows = _chunk(x_LxBxH, number), _chunk(d_LxBxG, number)
        return total + jnp.einsum("lbh,lbg->hg", *rows, preferred_element_type=jnp.float32)

    shape = x_LxBxH.shape[-1], d_LxBxG.shape[-1]
    zeros = jnp.zeros_like(d_LxBxG, jnp.float32, shape=shape)
    total = jax.lax.fori_loop(0, -(-num_steps // _CHUNK), chunk, zeros)
    return total.astype(d_LxBxG.dtype)


def _row(x_Lx: jax.Array, t: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x_Lx, t, 0, keepdims=False)


def _set_row(x_Lx: jax.Array, t: jax.Array, row_x: jax.Array) -> jax.Array:
    # Not `x.at[t].set`, which asks whether there is a row t.
    return jax.lax.dynamic_update_index_in_dim(x_Lx, row_x, t, 0)


def _chunk(x_Lx: jax.Array, number: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x_Lx, number * _CHUNK, _CHUNK, 0)


def _num_steps(lengths_B: jax.Array, gates_LxBxG: jax.Array) -> jax.Array:
    return jnp.minimum(_longest(lengths_B), gates_LxBxG.shape[0])


@jax.custom_batching.custom_vmap
def _longest(lengths_B: jax.Array) -> jax.Array:
    return jnp.max(lengths_B, initial=0)


@_longest.def_vmap
def _longest_of_all(axis_size: int, in_batched: Any, lengths: jax.Array) -> tuple[jax.Array, bool]:
    """Gives all of a vmap one length: with each its own, every step would copy whole arrays."""
    del axis_size, in_batched
    return _longest(lengths.ravel()), False


def _forget_bias_of_one(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    del key
    gate_size = shape[0] // 4
    return jnp.zeros(shape, dtype).at[gate_size : 2 * gate_size].set(1)
