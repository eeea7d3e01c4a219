"""The slot tagger: embedding, one LSTM layer, and a classifier of every token.

Hochreiter, Schmidhuber: Long Short-Term Memory, 1997, with the forget gate of Gers et al., 2000.

Dimensions: B sentences, L tokens, E embedding size, H hidden size, K tags, G = 4 H gates.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from models.losses import length_mask


class SlotTagger(nn.Module):
    """Gives every token of a sentence one logit per tag.

    Attributes:
        vocab_size: number of distinct tokens.
        num_tags: number of tags, K.
        embedding_size: size of a token's embedding, E.
        hidden_size: size of the LSTM's state, H.
        dtype: type of the matrix products of the LSTM, for instance `jnp.bfloat16`; parameters,
            cell state and logits are float32.
    """

    vocab_size: int
    num_tags: int
    embedding_size: int = 150
    hidden_size: int = 300
    dtype: DTypeLike = jnp.float32

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
        hidden_BxLxH = LSTM(self.hidden_size, self.dtype)(embeddings_BxLxE)
        logits_BxLxK = nn.Dense(self.num_tags, dtype=jnp.float32)(hidden_BxLxH)
        mask_BxL = length_mask(lengths_B, tokens_BxL.shape[1])
        return jnp.where(mask_BxL[:, :, None], logits_BxLxK, 0)


class LSTM(nn.Module):
    """One LSTM layer, left to right, from a zero state.

    The same function as `nn.RNN(nn.OptimizedLSTMCell(H))`. Here the inputs of all steps are
    projected by one matrix product before the scan, and only the recurrent product is left inside.

    The bias of the forget gate starts at one, so that the state is kept until the layer has learnt
    what to forget: Jozefowicz, Zaremba, Sutskever: An Empirical Exploration of Recurrent Network
    Architectures, 2015.

    Attributes:
        hidden_size: size of the state, H.
        dtype: type of the matrix products; the cell state is float32.
    """

    hidden_size: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, inputs_BxLxE: jax.Array) -> jax.Array:
        """Runs the layer over a batch of sequences.

        Args:
            inputs_BxLxE: the sequences.

        Returns:
            The hidden state after each step, of shape [B, L, H], in `dtype`.
        """
        num_gates = 4 * self.hidden_size
        projected_BxLxG = nn.Dense(
            num_gates, dtype=self.dtype, bias_init=_forget_bias_of_one, name="input"
        )(inputs_BxLxE)
        kernel_HxG = self.param(
            "recurrent_kernel", nn.initializers.orthogonal(), (self.hidden_size, num_gates)
        ).astype(self.dtype)

        def step(
            carry: tuple[jax.Array, jax.Array], projected_BxG: jax.Array
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            cell_BxH, hidden_BxH = carry
            gates_BxG = (projected_BxG + hidden_BxH @ kernel_HxG).astype(jnp.float32)
            input_gate, forget_gate, candidate, output_gate = jnp.split(gates_BxG, 4, axis=-1)
            cell_BxH = nn.sigmoid(forget_gate) * cell_BxH
            cell_BxH += nn.sigmoid(input_gate) * jnp.tanh(candidate)
            hidden_BxH = (nn.sigmoid(output_gate) * jnp.tanh(cell_BxH)).astype(self.dtype)
            return (cell_BxH, hidden_BxH), hidden_BxH

        # `zeros_like`, not `zeros`: under shard_map the state has to vary over the mesh axes that
        # the inputs or the parameters vary over.
        hidden_BxH = jnp.zeros_like(projected_BxLxG[:, 0, : self.hidden_size])
        cell_BxH = hidden_BxH.astype(jnp.float32)
        _, hidden_LxBxH = jax.lax.scan(
            step, (cell_BxH, hidden_BxH), jnp.swapaxes(projected_BxLxG, 0, 1)
        )
        return jnp.swapaxes(hidden_LxBxH, 0, 1)


def _forget_bias_of_one(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    del key
    gate_size = shape[0] // 4
    return jnp.zeros(shape, dtype).at[gate_size : 2 * gate_size].set(1)
