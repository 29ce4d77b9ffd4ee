"""The joining of predictions to the given pixels around them."""

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse
from scipy.sparse import linalg


def join(
    result: Float[np.ndarray, "m c"],
    values: Float[np.ndarray, "*sides c"],
    masked: Bool[np.ndarray, "*sides"],
    reach: float,
) -> Float[np.ndarray, "m c"]:
    """Return the values of masked pixels, changed so that they meet the given pixels around them.

    The change c has the least sum of squares of its steps from pixel to pixel, of the steps between
    the result and the given pixels beside it, and of c / reach: screened Poisson blending (Perez et
    al. 2003 and Bhat et al. 2008). So the steps of a prediction stay, and its changes fade within
    `reach` pixels from the border.

    Args:
      result: the predictions of the masked pixels.
      values: the picture; NaN is missing, and joined to nothing.
    """
    rows = np.cumsum(masked).reshape(masked.shape) - 1
    degree = np.full(result.shape, reach**-2, np.float64)
    border, links = np.zeros_like(degree), []
    for axis in range(masked.ndim):
        first = tuple(slice(-1 if i == axis else None) for i in range(masked.ndim))
        second = tuple(slice(1 if i == axis else None, None) for i in range(masked.ndim))
        inside = masked[first] & masked[second]
        links.append(np.stack([rows[first][inside], rows[second][inside]]))
        for one, other in ((first, second), (second, first)):
            edge = masked[one] & ~masked[other]
            at, given = rows[one][edge], values[other][edge]
            exists = ~np.isnan(given)
            degree[at] += exists
            border[at] += np.where(exists, given - result[at], 0)
    i, j = np.concatenate(links, axis=1)
    ones, shape = np.ones(len(i)), (len(result),) * 2
    graph = sparse.csr_array((ones, (i, j)), shape) + sparse.csr_array((ones, (j, i)), shape)
    count = graph.sum(0)
    change = np.empty_like(border)
    for channel in range(result.shape[1]):
        diagonal = count + degree[:, channel]
        system = sparse.diags_array(diagonal) - graph
        scale = sparse.diags_array(1 / diagonal)
        change[:, channel], _ = linalg.cg(system, border[:, channel], rtol=1e-6, M=scale)
    return (result + change).astype(np.float32)
