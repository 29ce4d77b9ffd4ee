"""The device's half of RandAugment: Pillow's color operations on a batch of uint8 pictures."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

Picture = UInt8[Array, "h w c"]
Values = Int[Array, "h w c"]
Table = Int[Array, "c 256"]
Number = Int[Array, ""]

_VALUES = np.arange(256)[None]


def apply(
    images: UInt8[Array, "b h w c"], drawn: Float[Array, "b operations 2"]
) -> UInt8[Array, "b h w c"]:
    """Apply to each picture (c is 1 or 3) its own operations in turn.

    All operations are computed for every picture and one result is selected, so that the program
    does not depend on the draw, and each device changes its own part of the batch. Six operations
    are a table of 256 values for each channel, and four are a blend with another picture. Results
    equal Pillow's, except that `auto_contrast` may be one higher where its quotient is an integer.

    Args:
      drawn: the index of each operation in `[*TABLES, *BLENDS]`, below 0 for none, and its
        argument, see `randaugment.COLORS`.
    """
    step = lambda images, drawn: (jax.vmap(_apply_one)(images, drawn), None)
    return jax.lax.scan(step, images, drawn.swapaxes(0, 1))[0]


def _apply_one(x: Picture, drawn: Float[Array, "2"]) -> Picture:
    kind, number = drawn[0].astype(jnp.int32), drawn[1]
    counts = jax.lax.platform_dependent(x, tpu=counts_by_products, default=counts_by_scatter)
    tables = [make(counts, number.astype(jnp.int32)) for make in TABLES.values()]
    tables = jnp.stack([jnp.broadcast_to(table, counts.shape) for table in tables])
    # Select by a product: with `switch` a CPU computes the table again for each pixel.
    table = jnp.tensordot(jax.nn.one_hot(kind, len(TABLES)), tables.astype(jnp.float32), 1)
    looked_up = jax.lax.platform_dependent(
        table, x, tpu=look_up_by_products, default=look_up_by_gather
    )
    base = jax.lax.switch(kind - len(TABLES), list(BLENDS.values()), x)
    blend = jnp.clip(base + number * (x - base), 0, 255).astype(jnp.uint8)  # astype rounds down
    return jnp.where(kind < 0, x, jnp.where(kind < len(TABLES), looked_up, blend))


# --- tables [c or 1, 256], from the histogram of the picture and the argument of the operation


def _auto_contrast(counts: Table, number: Number) -> Table:
    used = counts > 0
    low = used.argmax(1, keepdims=True)
    high = 255 - used[:, ::-1].argmax(1, keepdims=True)
    # Pillow divides doubles, and some integer quotients come out just below the integer.
    wider = jnp.clip((_VALUES - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, wider, _VALUES)


def _equalize(counts: Table, number: Number) -> Table:
    below = counts.cumsum(1) - counts
    step = jnp.where(counts > 0, below, 0).max(1, keepdims=True) // 255
    equal = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, equal, _VALUES)


TABLES = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": lambda counts, number: 255 - _VALUES,
    "posterize": lambda counts, bits: _VALUES >> (8 - bits) << (8 - bits),
    "solarize": lambda counts, least: jnp.where(_VALUES < least, _VALUES, 255 - _VALUES),
    "solarize_add": lambda counts, add: jnp.where(
        _VALUES < 128, jnp.minimum(_VALUES + add, 255), _VALUES
    ),
}

# --- blends: the picture of weight 0; weight 1 is the input, and larger weights extrapolate


def _gray(x: Picture) -> Values:
    values = x.astype(jnp.int32)
    if x.shape[-1] == 1:
        return values
    red, green, blue = jnp.split(values, 3, axis=-1)
    gray = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16  # BT.601, as Pillow rounds it
    return jnp.broadcast_to(gray, x.shape)


def _mean(x: Picture) -> Values:
    gray = _gray(x)[..., 0]
    if gray.size > 2**22:
        raise ValueError(f"contrast needs pictures of up to 4 megapixels, not {gray.shape}")
    return jnp.full(x.shape, (2 * gray.sum() + gray.size) // (2 * gray.size))


def _smooth(x: Picture) -> Values:
    """Return the mean of 3x3 pixels with a weight of five in the middle; the border is kept."""
    height, width, _ = x.shape
    values = x.astype(jnp.int32)
    near = jnp.pad(values, ((1, 1), (1, 1), (0, 0)))
    total = 4 * values + sum(near[i:, j:][:height, :width] for i in range(3) for j in range(3))
    inside = np.ones(x.shape, bool)
    inside[[0, -1]] = inside[:, [0, -1]] = False
    return jnp.where(inside, ((total + 6.5) / 13).astype(jnp.int32), values)


BLENDS = {
    "color": _gray,
    "contrast": _mean,
    "brightness": lambda x: jnp.zeros(x.shape, jnp.int32),
    "sharpness": _smooth,
}

# --- table access for each pixel: a TPU gathers and scatters slowly, so it multiplies instead


def counts_by_scatter(x: Picture) -> Table:
    """Return the histogram of each channel."""
    return jnp.zeros(256 * x.shape[-1], jnp.int32).at[_positions(x)].add(1).reshape(-1, 256)


def counts_by_products(x: Picture) -> Table:
    """Return the histogram of each channel, by pairs of the high and the low half of the bits."""
    high, low = _digits(x, 16)
    counts = jnp.einsum("hwci,hwcj->cij", high, low)  # exact: integers below 2**24
    return counts.reshape(-1, 256).astype(jnp.int32)


def look_up_by_gather(table: Table, x: Picture) -> Picture:
    """Return `table[channel, value]` of each value."""
    return table.astype(jnp.uint8).ravel()[_positions(x)].reshape(x.shape)


def look_up_by_products(table: Table, x: Picture) -> Picture:
    """Return `table[channel, value]`: the high bits select a row, and the low bits an entry."""
    high, low = _digits(x, 8)  # the fastest base
    rows = table.reshape(-1, 32, 8).astype(jnp.float32)
    return (jnp.einsum("hwci,cij->hwcj", high, rows) * low).sum(-1).astype(jnp.uint8)


def _positions(x: Picture) -> Int[Array, "values"]:
    return (x + 256 * np.arange(x.shape[-1]).reshape(1, 1, -1)).ravel()


def _digits(x: Picture, base: int) -> tuple[Float[Array, "h w c i"], Float[Array, "h w c j"]]:
    """Write the values as base * i + j, and return i and j in one-hot encoding."""
    one_hot = lambda digit, n: jax.nn.one_hot(digit, n, dtype=jnp.float32)
    return one_hot(x // base, 256 // base), one_hot(x % base, base)
