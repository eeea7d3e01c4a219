"""Random crop and flip, the augmentation that CIFAR is trained with."""

import jax
import jax.numpy as jnp


def random_crop_and_flip(key: jax.Array, images_BxHxWxC: jax.Array, padding: int = 4) -> jax.Array:
    """Crops each image at random from its padded self, and mirrors every other one.

    Args:
        key: Key of this batch.
        images_BxHxWxC: The images, of any dtype.
        padding: Black pixels on each side, zeros: an image moves by up to that much.

    Returns:
        Images of the same shape and dtype.
    """
    num_images, height, width, _ = images_BxHxWxC.shape
    shift_key, flip_key = jax.random.split(key)
    shift_2xB = jax.random.randint(shift_key, (2, num_images), -padding, padding + 1)
    flip_B = jax.random.bernoulli(flip_key, shape=(num_images,))
    rows_BxH = shift_2xB[0][:, None] + jnp.arange(height)[None]
    columns_1xW = jnp.arange(width)[None]
    columns_BxW = jnp.where(flip_B[:, None], width - 1 - columns_1xW, columns_1xW)
    columns_BxW = columns_BxW + shift_2xB[1][:, None]
    # One gather does crop and flip. Pixels that would come from the padding are gathered from
    # the edge and overwritten, which is faster than making a padded copy.
    cropped_BxHxWxC = images_BxHxWxC[
        jnp.arange(num_images)[:, None, None],
        rows_BxH.clip(0, height - 1)[:, :, None],
        columns_BxW.clip(0, width - 1)[:, None, :],
    ]
    row_inside_BxH = (rows_BxH >= 0) & (rows_BxH < height)
    column_inside_BxW = (columns_BxW >= 0) & (columns_BxW < width)
    inside_BxHxW = row_inside_BxH[:, :, None] & column_inside_BxW[:, None, :]
    return jnp.where(inside_BxHxW[..., None], cropped_BxHxWxC, 0)
