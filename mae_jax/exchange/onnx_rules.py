"""How ONNX expresses each primitive of jax that the networks use.

A rule takes the graph, the equation and the inputs, appends nodes and returns the results. Inputs
are names of results of nodes, or constants (numpy).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DTYPES = dict(float32=1, uint8=2, int32=6, int64=7, bool=9)  # `onnx.TensorProto.DataType`


def dtype_number(dtype: Any) -> int:
    return DTYPES[np.dtype(dtype).name]


def operator(name: str, *more: np.ndarray, **attributes: Any) -> Callable:
    """Return the rule of a primitive that is an operator of ONNX."""
    return lambda graph, _, *inputs: graph.add(name, *inputs, *more, **attributes)


def reduction(name: str) -> Callable:
    """Return the rule of a primitive that reduces `axes` with an operator of ONNX."""

    def rule(graph, equation, x):
        return graph.add(name, x, np.array(equation.params["axes"]), keepdims=0)

    return rule


def sizes(shape: Sequence[Any]) -> np.ndarray:
    """Return a shape for Reshape, which infers the symbolic size."""
    return np.array([size if isinstance(size, int) else -1 for size in shape], np.int64)


def reshape(graph, equation, x, *_):
    return graph.add("Reshape", x, sizes(equation.outvars[0].aval.shape))


def expand(graph, x, old: Sequence[Any], new: Sequence[Any]):
    """Repeat `x` along axes of size 1; `old` and `new` shapes have as many axes."""
    if tuple(old) == tuple(new):
        return x
    return graph.add("Expand", x, graph.add("Concat", *map(graph.size, new), axis=0))


def broadcast_in_dim(graph, equation, x, *_):
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    ones = [1] * len(new)
    for axis, size in zip(equation.params["broadcast_dimensions"], old, strict=True):
        ones[axis] = size
    if tuple(old) != tuple(ones):
        x = graph.add("Reshape", x, sizes(ones))
    return expand(graph, x, ones, new)


def iota(graph, equation):
    shape, axis = equation.outvars[0].aval.shape, equation.params["dimension"]
    dtype = dtype_number(equation.params["dtype"])
    count = graph.add("Squeeze", graph.size(shape[axis]))
    numbers = graph.add("Range", np.array(0), count, np.array(1))
    column = [shape[i] if i == axis else 1 for i in range(len(shape))]
    numbers = graph.add("Reshape", graph.add("Cast", numbers, to=dtype), sizes(column))
    return expand(graph, numbers, column, shape)


def dim_as_value(graph, equation):
    size = graph.add("Squeeze", graph.size(equation.params["dim"]))
    dtype = equation.outvars[0].aval.dtype
    return graph.add("Cast", size, to=dtype_number(dtype))


def cast(graph, equation, x, *_):
    dtype = np.dtype(equation.params["new_dtype"])
    return graph.add("Cast", x, to=dtype_number(dtype))


def transpose(graph, equation, x):
    return permuted(graph, x, equation.params["permutation"])


def permuted(graph, x, order: Sequence[int]):
    if list(order) == list(range(len(order))):
        return x
    return graph.add("Transpose", x, perm=order)


def dot_general(graph, equation, a, b):
    """Multiply [shared own summed] by [shared summed own] if that is a product of matrices."""
    (sum_a, sum_b), (shared_a, shared_b) = equation.params["dimension_numbers"]
    rank_a, rank_b = (len(x.aval.shape) for x in equation.invars)
    own_a = [i for i in range(rank_a) if i not in (*sum_a, *shared_a)]
    own_b = [i for i in range(rank_b) if i not in (*sum_b, *shared_b)]
    if len(sum_a) == len(own_b) == 1 and (len(own_a) == 1 or not shared_a):
        a = permuted(graph, a, [*shared_a, *own_a, *sum_a])
        return graph.add("MatMul", a, permuted(graph, b, [*shared_b, *sum_b, *own_b]))
    letters = "abcdefghijklmnopqrstuvwxyz"
    names_a, names_b = [*letters[:rank_a]], [*letters[rank_a : rank_a + rank_b]]
    for i, j in zip((*shared_a, *sum_a), (*shared_b, *sum_b), strict=True):
        names_b[j] = names_a[i]
    result = [names_a[i] for i in (*shared_a, *own_a)] + [names_b[i] for i in own_b]
    text = f"{''.join(names_a)},{''.join(names_b)}->{''.join(result)}"
    return graph.add("Einsum", a, b, equation=text)


def cut(graph, equation, x):
    p, shape = equation.params, equation.invars[0].aval.shape
    strides = p["strides"] or (1,) * len(shape)
    whole = [(0, size, 1) for size in shape]  # of the batch, whose size is unknown, all is taken
    bounds = [*zip(p["start_indices"], p["limit_indices"], strides, strict=True)]
    axes = [i for i in range(len(shape)) if bounds[i] != whole[i]]
    start, stop, step = (np.array([bounds[i][j] for i in axes], np.int64) for j in range(3))
    return graph.add("Slice", x, start, stop, np.array(axes, np.int64), step)


def gather(graph, equation, x, index):
    """Take, along one axis, a slice at a known place or the entries at an index.

    The index may be the same for all samples, or each sample may have its own.
    """
    numbers, taken = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, samples = equation.invars[0].aval.shape, tuple(numbers.operand_batching_dims)
    result, (axis, *others) = equation.outvars[0].aval.shape, numbers.start_index_map
    rest = [i for i in range(len(shape)) if i not in (axis, *samples)]
    if others or any(taken[i] != shape[i] for i in rest):
        refuse(equation)
    if isinstance(index, np.ndarray) and index.size == 1 and not samples:
        start = index.reshape(1).astype(np.int64)
        x = graph.add("Slice", x, start, start + taken[axis], np.array([axis]))
        return x if len(result) == len(shape) else graph.add("Reshape", x, sizes(result))
    places = range(axis, axis + len(equation.invars[1].aval.shape) - 1 - len(samples))
    offsets = tuple(i for i in range(len(result)) if i not in (*samples, *places))
    if numbers.collapsed_slice_dims != (axis,) or numbers.offset_dims != offsets:
        refuse(equation)
    if not samples:
        return graph.add("Gather", x, graph.add("Squeeze", index, np.array([-1])), axis=axis)
    if samples != (0,) or numbers.start_indices_batching_dims != (0,) or axis != 1:
        refuse(equation)
    return graph.add("GatherND", x, graph.add("Cast", index, to=DTYPES["int64"]), batch_dims=1)


def scatter(graph, equation, x, index, updates):
    """Put entries at places of the first axes."""
    numbers = equation.params["dimension_numbers"]
    places = tuple(range(equation.invars[1].aval.shape[-1]))
    if not places == numbers.inserted_window_dims == numbers.scatter_dims_to_operand_dims:
        refuse(equation)
    return graph.add("ScatterND", x, graph.add("Cast", index, to=DTYPES["int64"]), updates)


def sort(graph, equation, keys, *others):
    """Sort by the first operand; of equal keys the one of the lower index comes first."""
    axis = equation.params["dimension"]
    count = np.array([equation.invars[0].aval.shape[axis]])
    if equation.params["num_keys"] != 1:
        refuse(equation)
    keys, order = graph.add("TopK", keys, count, results=2, axis=axis, largest=0)
    return [keys, *(graph.add("GatherElements", x, order, axis=axis) for x in others)]


def argmax(graph, equation, x):
    (axis,) = equation.params["axes"]
    index = graph.add("ArgMax", x, axis=axis, keepdims=0)
    dtype = np.dtype(equation.params["index_dtype"])
    return graph.add("Cast", index, to=dtype_number(dtype))


def scan(graph, equation, *inputs):
    """Unroll a loop that keeps nothing of its steps but what the next one starts from."""
    p, body = equation.params, equation.params["jaxpr"]
    first = p["num_consts"]
    consts, state, rows = (
        inputs[:first],
        inputs[first:][: p["num_carry"]],
        inputs[first:][p["num_carry"] :],
    )
    if len(state) != len(equation.outvars):
        refuse(equation)
    steps = range(p["length"])
    for i in reversed(steps) if p["reverse"] else steps:
        take = lambda x, i=i: (
            x[i] if isinstance(x, np.ndarray) else graph.add("Gather", x, np.array(i), axis=0)
        )
        state = graph.run(body.jaxpr, body.consts, [*consts, *state, *map(take, rows)])
    return state


def stack(graph, equation, *inputs):
    axis = np.array([equation.params["axis"]])
    columns = [graph.add("Unsqueeze", x, axis) for x in inputs]
    return graph.add("Concat", *columns, axis=equation.params["axis"])


def unstack(graph, equation, x):
    axis = equation.params["axis"]
    return [graph.add("Gather", x, np.array(i), axis=axis) for i in range(len(equation.outvars))]


def refuse(equation):
    raise ValueError(f"{equation.primitive} has no rule for ONNX in this form: write a .stablehlo")


RULES: dict[str, Callable] = {
    "add": operator("Add"),
    "sub": operator("Sub"),
    "mul": operator("Mul"),
    "div": operator("Div"),
    "max": operator("Max"),
    "min": operator("Min"),
    "neg": operator("Neg"),
    "abs": operator("Abs"),
    "sign": operator("Sign"),
    "ceil": operator("Ceil"),
    "rem": operator("Mod", fmod=1),
    "exp": operator("Exp"),
    "log": operator("Log"),
    "erf": operator("Erf"),
    "sqrt": operator("Sqrt"),
    "logistic": operator("Sigmoid"),
    "square": lambda graph, _, x: graph.add("Mul", x, x),
    "rsqrt": lambda graph, _, x: graph.add("Reciprocal", graph.add("Sqrt", x)),
    "and": operator("And"),
    "or": operator("Or"),
    "not": operator("Not"),
    "eq": operator("Equal"),
    "ne": lambda graph, _, a, b: graph.add("Not", graph.add("Equal", a, b)),
    "lt": operator("Less"),
    "gt": operator("Greater"),
    "select_n": lambda graph, _, which, no, yes: graph.add("Where", which, yes, no),
    "reduce_sum": reduction("ReduceSum"),
    "reduce_max": reduction("ReduceMax"),
    "argmax": argmax,
    "stop_gradient": operator("Identity"),
    "copy": operator("Identity"),
    "convert_element_type": cast,
    "reshape": reshape,
    "squeeze": reshape,
    "expand_dims": reshape,
    "broadcast_in_dim": broadcast_in_dim,
    "concatenate": lambda graph, equation, *xs: graph.add(
        "Concat", *xs, axis=equation.params["dimension"]
    ),
    "stack": stack,
    "unstack": unstack,
    "transpose": transpose,
    "iota": iota,
    "dim_as_value": dim_as_value,
    "dot_general": dot_general,
    "slice": cut,
    "gather": gather,
    "scatter": scatter,
    "sort": sort,
    "scan": scan,
}
