"""Columns of Arrow tables: the inputs, and the labels and splits with them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import encoded, tables


def import_pyarrow(kind: str, extra: str = "parquet") -> Any:
    """Import pyarrow; an ImportError says how to install it for a kind of source."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"'{kind}:' needs pyarrow: pip install 'mae_jax[{extra}]' ({error})"
        ) from error
    return pyarrow


def choose(names: Sequence[str], columns: str, modality: str, spec: str) -> tuple[str, list[str]]:
    """Return the column of the inputs, and those that say labels, splits and names.

    Args:
      names: of all columns.
      columns: "", `INPUT`, `INPUT,LABEL` or `,LABEL`. By default the input is in `image` or in the
        column with the name of the modality, and labels are in the columns of `tables.read_csv`.

    Raises:
      ValueError: there are no such columns.
    """
    chosen, _, label = columns.partition(",")
    wanted = [chosen] if chosen else [*dict.fromkeys(["image", modality])]
    column = next((name for name in wanted if name in names), None)
    if column is None or label and label not in names:
        missing = " or ".join(map(repr, [label] if column else wanted))
        raise ValueError(
            f"data {spec!r} has no column {missing}: name one of {', '.join(names)} by PATH::INPUT "
            "or PATH::INPUT,LABEL"
        )
    is_label = lambda name: name == label if label else tables.is_label(name)
    return column, [
        name
        for name in names
        if name != column and (is_label(name) or name in (*tables.NAMES, *tables.SPLITS))
    ]


def class_names(
    schemas: Iterable[tuple[str, Any]], columns: Sequence[str], title: str
) -> dict[str, Sequence[str]]:
    """Return the names of classes by column that `datasets` of Hugging Face stored in schemas.

    Args:
      schemas: of all files, each with its name.
      columns: that are read.

    Raises:
      ValueError: the names in two files differ, so that a number would mean two classes.
    """
    (first, schema), *others = schemas
    names = _class_names(schema)
    for other, schema in others:
        own = _class_names(schema)
        for column in columns:
            if own.get(column) != names.get(column):
                raise ValueError(
                    f"{title}: {first!r} and {other!r} have different names of the classes in "
                    f"column {column!r}, so that a number means two classes: write both with one "
                    "list of names"
                )
    return {name: names[name] for name in columns if name in names}


def _class_names(schema: Any) -> dict[str, Sequence[str]]:
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = stored["info"]["features"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: names for name, feature in features if (names := _names_in(feature))}


def _names_in(feature: Any) -> Sequence[str]:
    """Return the names of a ClassLabel, or of a list of them."""
    if isinstance(feature, list) and len(feature) == 1:
        return _names_in(feature[0])
    if not isinstance(feature, dict):
        return ()
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return tuple(map(str, names)) if names else _names_in(feature.get("feature"))


def label_table(
    columns: Mapping[str, Sequence[Any]],
    schema: Any,
    names: Sequence[str],
    classes: Mapping[str, Sequence[str]],
    label: str,
    title: str,
) -> tables.Table:
    """Return the table of columns of Arrow, whose types say the kinds of labels.

    Args:
      columns: the values of each column, None where there is none.
      schema: of Arrow, with the types of the columns.
      names: of the examples; those in a column `path` or `file` take their place.
      classes: as `class_names` returns them.
      label: the only column of labels, of any name; "" reads those of `tables.read_csv`.

    Raises:
      ValueError: the values of a column are of no kind of label.
    """
    found, of_classes = {}, {}
    for name, values in columns.items():
        if name in tables.SPLITS:
            found[name] = [None if value is None else str(value) for value in values]
        elif name == label or not label and tables.is_label(name):
            key = _key(name, schema.field(name).type, is_chosen=bool(label))
            if key is None or key in found:
                raise ValueError(
                    f"{title}: column {name!r} of type {schema.field(name).type} is no labels, or "
                    "not the only ones: a class is a text or a whole number, several classes are a "
                    "list of these, and a target is a number; name the column by PATH::INPUT,LABEL"
                )
            found[key], of_classes[key] = values, classes.get(name, ())
    for own in (columns[name] for name in tables.NAMES if name in columns):
        if len({*own} - {None}) == len(own):
            names = [*map(str, own)]
    return tables.Table(title, names, found, of_classes)


def _key(name: str, of: Any, is_chosen: bool) -> str | None:
    """Return the column of `tables.Table` for labels of this type, or None if they are none.

    Floats are targets only in a column that is called so or chosen: pandas stores the numbers of
    classes as floats if some are missing.
    """
    from pyarrow import types

    if types.is_list(of) or types.is_large_list(of) or types.is_fixed_size_list(of):
        return "labels" if _key("", of.value_type, is_chosen=False) == "label" else None
    if types.is_dictionary(of):
        return _key(name, of.value_type, is_chosen)
    is_float = types.is_floating(of) or types.is_decimal(of)
    is_integer = types.is_integer(of) or types.is_boolean(of)
    if name.partition(":")[0] == "target":
        return name if is_float or is_integer else None
    if is_float:
        return f"target:{name}" if is_chosen else None
    return "label" if is_integer or types.is_string(of) or types.is_large_string(of) else None


def value(cell: Any) -> bytes | np.ndarray:
    """Return the content of a cell, an Arrow array of length 1.

    It is bytes, a text as UTF-8, the bytes in a struct of `bytes` and `path`, an array of a tensor
    type, or nested lists of numbers as an array. Missing numbers are NaN.

    Raises:
      Unreadable: the cell is empty, of another type, or a ragged array.
    """
    import pyarrow
    from pyarrow import types

    of = cell.type
    if isinstance(of, pyarrow.FixedShapeTensorType):
        return cell.to_numpy_ndarray()[0]
    if isinstance(of, pyarrow.BaseExtensionType):
        return value(cell.storage)
    if cell.null_count:
        raise Unreadable("the row is empty here: remove it")
    if types.is_struct(of) and of.get_field_index("bytes") >= 0:
        content = cell[0]["bytes"].as_py()
        if content is None:
            raise Unreadable("the row has a path and no bytes: embed the files, or use 'csv:'")
        return encoded.value(content)
    if types.is_binary(of) or types.is_large_binary(of) or types.is_fixed_size_binary(of):
        return encoded.value(cell[0].as_py())
    if types.is_string(of) or types.is_large_string(of):
        return cell[0].as_py().encode()
    if types.is_nested(of):
        return _array(cell)
    raise Unreadable(f"a value of type {of} is no input: store bytes or an array")


def _array(cell: Any) -> np.ndarray:
    """Return nested lists of numbers as an array."""
    import pyarrow.compute
    from pyarrow import types

    shape, values = [], cell
    while types.is_nested(values.type) and not types.is_struct(values.type):
        lengths = pyarrow.compute.call_function("list_value_length", [values]).unique()
        if len(lengths) != 1 or not lengths[0].is_valid:
            raise Unreadable("an array with rows of different lengths: store one with equal rows")
        shape.append(lengths[0].as_py())
        values = values.flatten()
    numbers = types.is_integer(values.type) or types.is_boolean(values.type)
    if not numbers and not types.is_floating(values.type):
        raise Unreadable(f"lists of type {values.type} are no array of numbers")
    if numbers and values.null_count:
        raise Unreadable("an array of whole numbers has missing values: store it as float")
    return values.to_numpy(zero_copy_only=False).reshape(shape)
