"""The translation of a function of jax into a graph of ONNX.

It knows the primitives of this project's networks (`onnx_rules`), in float32 and with a symbolic
batch size. The package jax2onnx, which knows many more, translates no indices of a symbolic batch
and thus no reconstruction, and its newest versions exclude the orbax that this project needs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper

from mae_jax.exchange import onnx_rules

OPSET = 18  # of 2022: these graphs need nothing that is newer
Value = str | np.ndarray  # the name of what a node computes, or a constant


def translate(
    function: Callable[..., Mapping[str, jax.Array]],
    params: Any,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
) -> onnx.ModelProto:
    """Return a model that computes `function(params, *inputs)`, with the names of its outputs.

    Args:
      params: a pytree of arrays, which become initializers named by their paths.
      inputs: by name; the first axis of each is the same symbolic batch size.

    Raises:
      ValueError: the function uses a primitive in a way that has no rule.
    """
    closed, results = jax.make_jaxpr(function, return_shape=True)(params, *inputs.values())
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    arrays = [np.asarray(x) for _, x in flat]
    graph = Graph(next(iter(inputs)), dict(zip(map(id, arrays), names, strict=True)))
    values = graph.run(closed.jaxpr, closed.consts, [*arrays, *inputs])
    for name, value in zip(sorted(results), values, strict=True):  # jax sorts the keys of a dict
        graph.nodes.append(helper.make_node("Identity", [graph.name(value)], [name]))
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "mae_jax",
            [_value_info(name, x) for name, x in inputs.items()],
            [_value_info(name, x) for name, x in results.items()],
            [*graph.initializers.values()],
        ),
        opset_imports=[opset],
        ir_version=helper.find_min_ir_version_for([opset]),  # older runtimes refuse the newest
    )


def _value_info(name: str, x: jax.ShapeDtypeStruct) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(x.dtype))
    return helper.make_tensor_value_info(name, dtype, ["batch", *x.shape[1:]])


class Graph:
    """The nodes and constants of a graph that grows.

    Args:
      batched: the name of an input, whose first axis is the batch.
      names: of constants, by `id`; others are numbered.
    """

    def __init__(self, batched: str, names: dict[int, str]):
        self.batched, self.names = batched, names
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._alive: list[np.ndarray] = []  # while an array lives, no other has its `id`

    def add(self, operator: str, *inputs: Value, results: int = 1, **attributes: Any) -> Any:
        """Append a node, and return the name of its result, or a list of several."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        outputs = [name, *(f"{name}_{i}" for i in range(1, results))]
        names = [self.name(x) for x in inputs]
        self.nodes.append(helper.make_node(operator, names, outputs, name, **attributes))
        return name if results == 1 else outputs

    def name(self, value: Value) -> str:
        """Return the name of a value; a constant becomes an initializer."""
        if isinstance(value, str):
            return value
        self._alive.append(value)
        name = self.names.setdefault(id(value), f"constant_{len(self.initializers)}")
        if name not in self.initializers:
            self.initializers[name] = onnx.numpy_helper.from_array(value, name)
        return name

    def size(self, size: Any) -> Value:
        """Return the size of an axis as a vector of one number, known early or at run time."""
        if isinstance(size, int):
            return np.array([size], np.int64)
        return self.add("Shape", self.batched, start=0, end=1)

    def run(self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """Append the nodes of a jaxpr that its results need, and return these."""
        values = dict(zip(jaxpr.invars, inputs, strict=True))
        values |= zip(jaxpr.constvars, map(np.asarray, consts), strict=True)

        def read(x) -> Value:
            return np.asarray(x.val, x.aval.dtype) if isinstance(x, core.Literal) else values[x]

        for equation in _needed(jaxpr):
            results = self._apply(equation, [read(x) for x in equation.invars])
            values |= zip(equation.outvars, results, strict=True)
        return [read(x) for x in jaxpr.outvars]

    def _apply(self, equation: core.JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value]:
        """Append the nodes of an equation, or compute it now if it depends on constants alone."""
        primitive, params = equation.primitive, equation.params
        sizes = [size for x in equation.outvars for size in x.aval.shape] + [params.get("dim", 0)]
        if all(isinstance(x, np.ndarray) for x in inputs) and all(
            isinstance(x, int) for x in sizes
        ):
            results = primitive.bind(*inputs, **params)
            return [np.asarray(x) for x in (results if primitive.multiple_results else [results])]
        for inner in params.values():
            if isinstance(inner, core.ClosedJaxpr):  # of jit or custom_jvp
                return self.run(inner.jaxpr, inner.consts, inputs)
        if primitive.name not in onnx_rules.RULES:
            raise ValueError(f"{primitive} of jax has no rule for ONNX: write a .stablehlo")
        result = onnx_rules.RULES[primitive.name](self, equation, *inputs)
        return result if primitive.multiple_results else [result]


def _needed(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """Return the equations that the results depend on, in their order."""
    variables = lambda atoms: {x for x in atoms if not isinstance(x, core.Literal)}
    needed, equations = variables(jaxpr.outvars), []
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            equations.append(equation)
            needed |= variables(equation.invars)
    return equations[::-1]
