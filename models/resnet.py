"""The CIFAR ResNet family: depths 8, 20, 32, 44, 56, 110, and every other 6k + 2.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015, section 4.2
(arXiv:1512.03385). A 3x3 convolution, three stages of k blocks of two 3x3 convolutions each, with
16, 32 and 64 channels and a halved image at the start of the second and third, global average
pooling and a linear classifier: 6k + 2 weighted layers.

Dimensions: B images, H rows, W columns, C channels, K classes.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from models.convolution import convolve
from models.members import ManyModels

_STAGE_CHANNELS = (16, 32, 64)
_WEIGHT_INIT = nn.initializers.he_normal()


class ResNet(nn.Module):
    """A ResNet for small images; the size and the channel count of the input are free.

    Parameters and batch-norm statistics are float32 whatever `dtype` is. The running statistics
    live in the collection `batch_stats`; a training call has to make it mutable:

        logits, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])

    Attributes:
        depth: number of weighted layers, 6k + 2 for a positive integer k.
        num_classes: number of classes, K.
        dtype: type of the convolutions and activations, for instance `jnp.bfloat16`.
        batch_norm_momentum: share of the old value that a running statistic keeps at each step.
        many_models: how a vmap over models convolves; see `models.members`.

    Raises:
        ValueError: `depth` is not 6k + 2.
    """

    depth: int = 20
    num_classes: int = 10
    dtype: DTypeLike = jnp.float32
    batch_norm_momentum: float = 0.9
    many_models: ManyModels = "auto"

    def __post_init__(self) -> None:
        """Rejects a depth outside the family where the model is made, not where it is first run."""
        if self.depth < 8 or self.depth % 6 != 2:
            raise ValueError(
                f"depth is {self.depth}, expected 6k + 2 with k >= 1: 8, 20, 32, 44, 56, 110, ..."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, images_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Classifies a batch of images.

        Args:
            images_BxHxWxC: normalised images, floating point.
            train: normalise by the statistics of this batch, and update the running ones;
                otherwise normalise by the running ones.

        Returns:
            Logits of shape [B, K], float32.
        """
        conv = partial(conv3x3, dtype=self.dtype, many_models=self.many_models)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.batch_norm_momentum,
            dtype=self.dtype,
        )

        x = nn.relu(norm()(conv(_STAGE_CHANNELS[0])(images_BxHxWxC)))
        for stage, channels in enumerate(_STAGE_CHANNELS):
            for block in range((self.depth - 2) // 6):
                strides = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm()(conv(channels, strides=strides)(x)))
                y = norm()(conv(channels)(y))
                x = nn.relu(shortcut(x, channels, strides) + y)

        features_BxC = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=_WEIGHT_INIT)(features_BxC)


def shortcut(x_BxHxWxC: jax.Array, channels: int, strides: int) -> jax.Array:
    """The parameter-free shortcut, option A of the paper: subsample, and pad channels with zeros.

    Args:
        x_BxHxWxC: the input of a block.
        channels: number of channels of the block's output, at least C.
        strides: spatial stride of the block.

    Returns:
        Array of shape [B, ceil(H / strides), ceil(W / strides), channels].
    """
    extra_channels = channels - x_BxHxWxC.shape[-1]
    return jnp.pad(
        x_BxHxWxC[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), (0, extra_channels))
    )


def conv3x3(
    channels: int,
    *,
    strides: int = 1,
    dtype: DTypeLike = jnp.float32,
    many_models: ManyModels = "auto",
) -> nn.Conv:
    """A 3x3 convolution without bias, whose output has ceil(H / strides) rows."""

    def centred(images: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
        return convolve(images, kernel, strides, many_models)

    return nn.Conv(
        channels,
        kernel_size=(3, 3),
        strides=strides,
        # Not "SAME", which pads an even-sized image on the far side only when the stride is two:
        # the filter has to be centred on the pixels that the shortcut keeps.
        padding=1,
        use_bias=False,
        kernel_init=_WEIGHT_INIT,
        dtype=dtype,
        conv_general_dilated=centred,
    )
