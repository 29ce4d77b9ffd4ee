"""From nested values to a checked config, and back.

A config file returns plain nested values; `validate` makes a `Config` of them, or says all that is
wrong. `sections.py` holds the keys.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from ml_collections import ConfigDict
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mae_jax.config import checks, nested, old_keys, sections
from mae_jax.config.errors import UserError

Config = sections.Config
Rule = Callable[[Any], Iterator[str]]  # config -> what is wrong with its values together


class Key(NamedTuple):
    """A key that a config may have."""

    field: FieldInfo
    default: Any  # `PydanticUndefined` if there is none

    @property
    def expected(self) -> str:
        """What its value must be."""
        for item in self.field.metadata:
            if isinstance(item, sections.Expected):
                return item.text
        return "one of " + ", ".join(map(repr, get_args(self.field.annotation)))


def keys(config: Mapping) -> dict[str, Key]:
    """The keys that such a config may have, by their dotted names.

    They depend on its task, on the modality of its data, and on its evaluators. If these are wrong
    there are none.
    """
    if _wrong_kinds(config):
        return {}
    task = config.get("task", "pretrain")
    return dict(_keys(sections.TASKS[task], None, config, sections.EVALUATORS[task]))


def _keys(kind, default, values, evaluators, prefix="") -> Iterator[tuple[str, Key]]:
    for name, field in kind.model_fields.items():
        value, section = values.get(name), field.annotation
        value = value if isinstance(value, Mapping) else {}
        if name == "evaluators":
            for entry, x in value.items():
                kind = evaluators[x["type"]]
                yield from _keys(kind, None, x, evaluators, f"evaluators.{entry}.")
            continue
        if name == "data" and not prefix:
            section = sections.MODALITIES[value.get("modality", "image")]
        if isinstance(section, type) and issubclass(section, sections.Section):
            start = None if field.is_required() else field.default
            yield from _keys(section, start, value, evaluators, f"{prefix}{name}.")
        else:
            usual = field.default if default is None else getattr(default, name)
            yield prefix + name, Key(field, usual)


def validate(config: Mapping, rules: Sequence[Rule] = (), problems: Iterable[str] = ()) -> Config:
    """The checked config of nested values, in which old names are read too.

    Args:
      rules: beside those of `checks.py`, such as `models.rules.RULES` of the network's geometry.
      problems: that are known already.

    Raises:
      UserError: all that is wrong, each with its value and a way out.
    """
    values = _read(config)
    found, checked = examined(values, (*checks.RULES, *rules))
    if problems := sorted({*problems, *found}):
        raise UserError("; ".join(problems))
    assert checked is not None
    return checked


def _read(config: Mapping) -> dict:
    """Nested dicts under the names of today, without the evaluators that have no source."""
    values = old_keys.renamed(nested.plain(config), "the config")
    if isinstance(values.get("data"), dict):
        values["data"].setdefault("modality", "image")
    entries = values.get("evaluators")
    if isinstance(entries, dict):
        values["evaluators"] = {name: x for name, x in entries.items() if not _left_out(x)}
    return values


def _left_out(entry: Any) -> bool:
    """Whether an evaluator is None or one of its sources is empty."""
    flat = nested.flatten({"entry": entry})
    return entry is None or any(k.endswith(".source") and x == "" for k, x in flat.items())


def examined(values: dict, rules: Sequence[Rule]) -> tuple[list[str], Config | None]:
    """All that is wrong with nested values of today's names by these rules, or else the config."""
    if wrong := _wrong_kinds(values):
        return wrong, None
    known, problems, wrong = keys(values), [], set()
    try:
        config: Any = sections.TASKS[values.get("task", "pretrain")].model_validate(values)
    except ValidationError as error:
        for part in error.errors(include_url=False):
            key = _key(part["loc"], known)
            inside = [x for x in known if x == key or x.startswith(f"{key}.")]
            if part["type"] == "missing":
                problems += [f"{x} is missing" for x in inside if known[x].field.is_required()]
            elif key in known:
                value = nested.get(values, key)
                problems.append(f"{key} = {value!r} must be {known[key].expected}")
            else:
                part = nested.get(values, key)
                leaves = nested.flatten({key: part}) if isinstance(part, dict) else [key]
                problems += [unknown(x, known) for x in leaves]
            wrong |= {key, *inside}
        # The rules are asked about the other values.
        flat = nested.flatten(values)
        right = {x: flat.get(x, key.default) for x, key in known.items() if x not in wrong}
        config = ConfigDict(nested.unflatten(right))
    for rule in rules:
        try:
            problems += rule(config)
        except (AttributeError, KeyError):
            if not wrong:
                raise  # a mistake of ours, and not a key that is missing because it is wrong
    return problems, None if problems else config


def _wrong_kinds(values: Mapping) -> list[str]:
    """What is wrong with the keys that decide which other keys there are."""
    task, data = values.get("task", "pretrain"), values.get("data", {})
    if not isinstance(task, str) or task not in sections.TASKS:
        return [f"task = {task!r} must be {_one_of(sections.TASKS)}"]
    if isinstance(data, Mapping):
        modality = data.get("modality", "image")
        if not isinstance(modality, str) or modality not in sections.MODALITIES:
            return [f"data.modality = {modality!r} must be {_one_of(sections.MODALITIES)}"]
    entries, types, problems = values.get("evaluators", {}), sections.EVALUATORS[task], []
    if not isinstance(entries, Mapping):
        return [f"evaluators = {entries!r} must be sections such as evaluators.knn.type='knn'"]
    typed = {k: x for k, x in entries.items() if isinstance(x, Mapping) and "type" in x}
    for name, x in entries.items():
        kind = x.get("type") if isinstance(x, Mapping) else None
        if name not in typed:
            known = nested.flatten({"evaluators": typed})
            problems += [unknown(key, known) for key in nested.flatten({"evaluators": {name: x}})]
        elif not isinstance(kind, str) or kind not in types:
            problems.append(f"evaluators.{name}.type = {kind!r} must be {_one_of(types)}")
    return problems


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(map(repr, names))


def _key(location: tuple, known: Iterable[str]) -> str:
    """The dotted name of the place of an error, without pydantic's names for members of unions."""
    name = ""
    for part in location:
        longer = f"{name}.{part}".lstrip(".")
        if longer in known:
            return longer
        if part is location[-1] or any(x.startswith(f"{longer}.") for x in known):
            name = longer
    return name


def unknown(name: str, known: Iterable[str]) -> str:
    """The sentence about a key that no config has."""
    if inside := [x for x in known if x.startswith(f"{name}.")]:
        return f"{name} is no config key, but has some: {', '.join(sorted(inside))}"
    near = difflib.get_close_matches(name, list(known), 1, cutoff=0.4)
    return f"unknown config key {name}" + (f": did you mean {near[0]}?" if near else "")


def completed(config: Mapping) -> dict:
    """Nested dicts under the names of today, with every key that has a default."""
    values = _read(config)
    if _wrong_kinds(values):
        return values
    flat = nested.flatten(values)
    for name, key in keys(values).items():
        if name not in flat and not key.field.is_required():
            flat[name] = key.default
        elif key.field.annotation is float and type(flat.get(name)) is int:
            flat[name] = float(flat[name])  # a ConfigDict keeps the type of each value
    return nested.unflatten(flat) | ({} if values.get("evaluators") else {"evaluators": {}})


def updated(config: Mapping, changes: Mapping[str, Any], rules: Sequence[Rule] = ()) -> Config:
    """The config with some values replaced, such as `{"model.remat": "inputs"}`, and checked again.

    None removes a key, such as an evaluator.
    """
    values = nested.plain(config)
    for name, value in changes.items():
        nested.put(values, name, value)
    return validate(values, rules)


# --- config.json ----------------------------------------------------------------------------------


def to_dict(config: Mapping) -> dict:
    """Plain dicts and lists, as `config.json` of a work directory holds them."""
    return json.loads(json.dumps(nested.plain(config)))


def to_json(config: Mapping) -> str:
    return json.dumps(to_dict(config), indent=2) + "\n"


def resolved(config: Config, backend: str, stored: Mapping | None = None) -> Config:
    """The config with the precision that `model.dtype` "auto" means.

    A run keeps the precision that it began with, wherever it goes on.

    Args:
      backend: of jax: "cpu" computes in float32, and others in bfloat16.
      stored: the config.json of the work directory, if there is one.
    """
    if config["model"]["dtype"] != "auto":
        return config
    kept = nested.flatten(stored or {}).get("model.dtype", "auto")
    dtype = kept if kept != "auto" else "float32" if backend == "cpu" else "bfloat16"
    model = config["model"].model_copy(update={"dtype": dtype})
    return config.model_copy(update={"model": model})


def differences(stored: Mapping, config: Mapping) -> list[str]:
    """`model.depth: 12 there, 8 here` for each key that is not the same and may not change."""
    there, here = nested.flatten(to_dict(completed(stored))), nested.flatten(to_dict(config))
    if there.get("model.dtype") == "auto":  # stored before it was resolved
        there["model.dtype"] = here.get("model.dtype")
    return [
        f"{name}: {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name) and not re.fullmatch(sections.MAY_CHANGE, name)
    ]
