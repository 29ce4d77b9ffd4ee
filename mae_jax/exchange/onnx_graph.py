"""The translation of a function of jax into a graph of ONNX.

It knows the primitives of this project's networks (`onnx_rules`), in float32 and with a symbolic
batch size. The package jax2onnx, which knows many more, translates no indices of a symbolic batch
and thus no reconstruction, and its newest versions exclude the orbax that this project needs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from mae_jax.exchange import onnx_rules

OPSET = 18  # of 2022: these graphs need nothing that is newer
Value = str | np.ndarray  # the name of what a node computes, or a constant


def translate(
    function: Callable[..., Mapping[str, jax.Array]],
    params: Any,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
) -> Any:
    """Return an `onnx.ModelProto` of `function(params, *inputs)`, which returns outputs by name.

    Args:
      params: a pytree of arrays, which become initializers named by their paths.
      inputs: by name; the first axis of each is the same symbolic batch size.

    Raises:
      ValueError: the function uses a primitive in a way that has no rule.
    """
    closed, outputs = jax.make_jaxpr(function, return_shape=True)(params, *inputs.values())
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    arrays = [np.asarray(x) for _, x in flat]
    batched, first = next(iter(inputs.items()))
    graph = Graph(batched, first.shape[0], dict(zip(map(id, arrays), names, strict=True)))
    results = graph.run(closed.jaxpr, closed.consts, [*arrays, *inputs])
    for name, result in zip(sorted(outputs), results, strict=True):  # as jax sorts a dict
        graph.nodes.append(Node("Identity", [graph.name(result)], [name], {}))
    return _model(graph, inputs, outputs)


def _model(graph: "Graph", inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
    from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]

    def value_info(name, x):
        shape = ["batch", *x.shape[1:]]
        return helper.make_tensor_value_info(name, onnx_rules.dtype_number(x.dtype), shape)

    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node(x.operator, x.inputs, x.outputs, **x.attributes)
                for x in graph.nodes
            ],
            "mae_jax",
            [value_info(name, x) for name, x in inputs.items()],
            [value_info(name, x) for name, x in outputs.items()],
            [numpy_helper.from_array(x, name) for name, x in graph.initializers.items()],
        ),
        opset_imports=[opset],
        ir_version=helper.find_min_ir_version_for([opset]),  # older runtimes refuse the newest
    )


class Node(NamedTuple):
    """An operator of ONNX with the names of its inputs and outputs."""

    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


class Graph:
    """The nodes and constants of a graph that grows.

    Args:
      batched: the name of an input, whose first axis has the symbolic size `batch`.
      names: of constants, by `id`; others are numbered.
    """

    def __init__(self, batched: str, batch: Any, names: dict[int, str]):
        self.batched, self.batch, self.names = batched, batch, names
        self.nodes: list[Node] = []
        self.initializers: dict[str, np.ndarray] = {}  # kept, so that no other array has their `id`

    def add(self, operator: str, *inputs: Value, results: int = 1, **attributes: Any) -> Any:
        """Append a node, and return the name of its result, or a list of several."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        outputs = [name, *(f"{name}_{i}" for i in range(1, results))]
        names = [self.name(x) for x in inputs]
        self.nodes.append(Node(operator, names, outputs, attributes))
        return name if results == 1 else outputs

    def name(self, value: Value) -> str:
        """Return the name of a value; a constant becomes an initializer."""
        if isinstance(value, str):
            return value
        name = self.names.setdefault(id(value), f"constant_{len(self.initializers)}")
        self.initializers[name] = value
        return name

    def size(self, size: Any) -> Value:
        """Return the size of an axis as a vector of one number, known early or at run time."""
        if isinstance(size, int):
            return np.array([size], np.int64)
        if size != self.batch:
            raise ValueError(f"a size of {size} has no rule for ONNX: write a .stablehlo")
        return self.add("Shape", self.batched, start=0, end=1)

    def run(self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
        """Append the nodes of a jaxpr that its results need, and return these."""
        values = dict(zip(jaxpr.invars, inputs, strict=True))
        values |= zip(jaxpr.constvars, map(np.asarray, consts), strict=True)

        def read(x: Any) -> Value:
            return np.asarray(x.val, x.aval.dtype) if _is_literal(x) else values[x]

        for equation in _needed(jaxpr):
            results = self._apply(equation, [read(x) for x in equation.invars])
            values |= zip(equation.outvars, results, strict=True)
        return [read(x) for x in jaxpr.outvars]

    def _apply(self, equation: core.JaxprEqn, inputs: Sequence[Value]) -> Sequence[Value]:
        """Append the nodes of an equation, or compute it now if it depends on constants alone."""
        primitive, params = equation.primitive, equation.params
        avals: list[Any] = [x.aval for x in equation.outvars]
        sizes = [size for aval in avals for size in aval.shape] + [params.get("dim", 0)]
        is_known = all(isinstance(x, np.ndarray) for x in inputs)
        if is_known and all(isinstance(size, int) for size in sizes):
            results = primitive.bind(*inputs, **params)
            return [np.asarray(x) for x in (results if primitive.multiple_results else [results])]
        for inner in params.values():
            is_called_once = primitive.name not in onnx_rules.RULES  # as jit or custom_jvp
            if is_called_once and isinstance(inner, core.ClosedJaxpr):
                return self.run(inner.jaxpr, inner.consts, inputs)
        if primitive.name not in onnx_rules.RULES:
            raise ValueError(f"{primitive} of jax has no rule for ONNX: write a .stablehlo")
        result = onnx_rules.RULES[primitive.name](self, equation, *inputs)
        return result if primitive.multiple_results else [result]


def _needed(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """Return the equations that the results depend on, in their order."""
    variables = lambda atoms: {x for x in atoms if not _is_literal(x)}
    needed, equations = variables(jaxpr.outvars), []
    for equation in reversed(jaxpr.eqns):
        if needed.intersection(equation.outvars):
            equations.append(equation)
            needed |= variables(equation.invars)
    return equations[::-1]


def _is_literal(x: Any) -> bool:
    return isinstance(x, core.Literal)
