"""The conversion of nested values into a checked config, and back.

A config file returns plain nested values. `validate` makes a `Config` of them, or raises an error
that lists every problem. The keys are defined in `sections.py`.
"""

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from ml_collections import ConfigDict
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mae_jax.config import checks, nested, old_keys, sections
from mae_jax.config.errors import UserError

Config = sections.Config
Rule = Callable[[Any], Iterator[str]]  # config -> contradictions between its values


def keys(config: Mapping) -> dict[str, FieldInfo]:
    """Return the keys that a config may have, by their dotted names.

    The keys depend on the task, the modality of the data, and the types of the evaluators.
    """
    task, modality = _task(config), nested.get(config, "data.modality")
    data = sections.MODALITIES.get(str(modality or "image"), sections.Data)
    fields = _keys(sections.TASKS.get(task, Config), "") | _keys(data, "data.")
    evaluators, types = config.get("evaluators"), sections.EVALUATORS.get(task, {})
    if isinstance(evaluators, Mapping):
        for name, entry in evaluators.items():
            if kind := types.get(str(nested.get(entry, "type"))):
                fields |= _keys(kind, f"evaluators.{name}.")
    return fields


def _task(config: Mapping) -> str:
    return str(config.get("task", "pretrain"))


def _keys(kind: type[sections.Section], prefix: str) -> dict[str, FieldInfo]:
    """Return the keys of a section and of the sections in it, except `data` and `evaluators`."""
    fields = {}
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, sections.Section):
            fields |= _keys(section, f"{prefix}{name}.")
        elif name not in ("data", "evaluators") or prefix:
            fields[prefix + name] = field
    return fields


def expected(field: FieldInfo) -> str:
    """Describe the values that a key may have."""
    return field.title or _one_of(get_args(field.annotation))


def section(kind: type[sections.Section], values: Mapping) -> Any:
    """Return the section of a kind with these values; raise ValueError with each wrong value."""
    try:
        return kind.model_validate({**values})
    except ValidationError as error:
        problems = _wrong_values(error, {**values}, _keys(kind, ""))
        raise ValueError("; ".join(problems.values())) from error


def validate(config: Mapping, rules: Sequence[Rule] = (), problems: Iterable[str] = ()) -> Config:
    """Check nested values, which may have old names, and return the config.

    Args:
      rules: further rules beside those of `checks.py`, such as `models.rules.RULES`.
      problems: sentences about problems of other values, to report as well.

    Raises:
      UserError: every problem, with the value and a way out.
    """
    values = _read(config)
    task_rules = checks.TASK_RULES.get(_task(values), ())
    sentences, checked = examine(values, (*checks.RULES, *task_rules, *rules))
    if problems := sorted({*problems, *sentences}):
        raise UserError("; ".join(problems))
    return checked


def _read(config: Mapping, place: str = "the config") -> dict:
    """Return nested dicts under current names, without the evaluators that are left out."""
    values = old_keys.renamed(nested.plain(config), place)
    if isinstance(values.get("data"), dict):
        values["data"].setdefault("modality", "image")  # other keys depend on the modality
    if isinstance(entries := values.get("evaluators"), dict):
        values["evaluators"] = {name: x for name, x in entries.items() if not _is_left_out(x)}
    return values


def _is_left_out(entry: Any) -> bool:
    """Return whether an evaluator is None or has an empty source."""
    flat = nested.flatten({"entry": entry})
    return entry is None or any(k.endswith(".source") and x == "" for k, x in flat.items())


def examine(values: dict, rules: Sequence[Rule]) -> tuple[list[str], Any]:
    """Return the problems of nested values by the schema and these rules, and the config.

    If some values are wrong by themselves, the rules judge a config of the other values.
    """
    if _task(values) not in sections.TASKS:
        return [f"task = {values['task']!r} must be {_one_of(sections.TASKS)}"], None
    problems = {}
    try:
        config: Any = sections.TASKS[_task(values)].model_validate(values)
    except ValidationError as error:
        fields, flat = keys(values), nested.flatten(values)
        problems = _wrong_values(error, values, fields)
        names = [name for name in fields if name not in problems]
        right = {name: flat.get(name, fields[name].default) for name in names}
        config = ConfigDict(nested.unflatten(right))
    contradictions = []
    for rule in rules:
        try:
            contradictions += rule(config)
        except (AttributeError, KeyError):
            if not problems:
                raise  # the rule is wrong, because no value is missing
    return [*problems.values(), *contradictions], config


def _wrong_values(
    error: ValidationError, values: dict, fields: dict[str, FieldInfo]
) -> dict[str, str]:
    """Return the problem of each key whose value is wrong by itself."""
    problems = {}
    for details in error.errors(include_url=False):
        name = _name(details["loc"], fields)
        value = nested.get(values, name)
        inside = [key for key in fields if key == name or key.startswith(f"{name}.")]
        if details["type"] == "missing":
            required = [key for key in inside if fields[key].is_required()]
            problems |= {key: f"{key} is missing" for key in required}
        elif details["type"] == "union_tag_invalid":
            context = details.get("ctx", {})
            key, tags = context["discriminator"].strip("'"), context["expected_tags"]
            problems[f"{name}.{key}"] = f"{name}.{key} = {value[key]!r} must be one of {tags}"
        elif name == "evaluators":
            problems[name] = f"{name} = {value!r} must be sections such as {name}.knn.type='knn'"
        elif name in fields and not isinstance(value, dict):
            problems[name] = f"{name} = {value!r} must be {expected(fields[name])}"
        else:
            names = list(nested.flatten({name: value})) if isinstance(value, dict) else [name]
            problems |= {key: unknown(key, fields) for key in names}
            problems |= dict.fromkeys(inside, unknown(names[0], fields))
    return problems


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(map(repr, names))


def _name(location: tuple, fields: Iterable[str]) -> str:
    """Return the dotted name of an error's key, without pydantic's names of union members."""
    union = {"data": 1, "evaluators": 2}.get(location[0])  # the depth of the member's name
    parts = [str(part) for depth, part in enumerate(location) if depth != union]
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return next((name for name in names if name in fields), names[-1])


def unknown(name: str, known: Collection[str]) -> str:
    """Return a sentence about a key that is not among the `known` ones."""
    if inside := [key for key in known if key.startswith(f"{name}.")]:
        return f"{name} is no config key, but has some: {', '.join(sorted(inside))}"
    choices = (("task", sections.TASKS, ""), ("data.modality", sections.MODALITIES, "data."))
    for key, kinds, prefix in choices if "task" in known else ():  # of a whole config
        if values := [value for value, kind in kinds.items() if name in _keys(kind, prefix)]:
            return f"{name} is a key of {key} = {' or '.join(map(repr, values))} alone"
    matches = difflib.get_close_matches(name, list(known), 1, cutoff=0.4)
    return f"unknown config key {name}" + (f": did you mean {matches[0]}?" if matches else "")


def completed(config: Mapping, place: str = "the config") -> dict:
    """Return nested dicts under current names, with every key that has a default.

    Args:
      place: the origin of the config, for a warning about old names.
    """
    values = _read(config, place)
    defaults = {k: field.default for k, field in keys(values).items() if not field.is_required()}
    return nested.unflatten(defaults | nested.flatten(values))


def updated(config: Mapping, changes: Mapping[str, Any], rules: Sequence[Rule] = ()) -> Config:
    """Return a checked config with some values replaced, such as `{"model.remat": "inputs"}`.

    The value None removes an evaluator.
    """
    values = nested.plain(config)
    for name, value in changes.items():
        nested.put(values, name, value)
    return validate(values, rules)


# --- config.json ----------------------------------------------------------------------------------


def to_dict(config: Mapping) -> dict:
    """Return the plain dicts and lists that `config.json` of a work directory holds."""
    return json.loads(json.dumps(nested.plain(config)))


def to_json(config: Mapping) -> str:
    return json.dumps(to_dict(config), indent=2) + "\n"


def resolved(config: Config, backend: str, stored: Mapping | None = None) -> Config:
    """Return the config with the precision that `model.dtype` "auto" means.

    A run keeps the precision that it began with, also on other devices.

    Args:
      backend: the backend of jax: "cpu" computes in float32, and others in bfloat16.
      stored: the config.json of the work directory, if there is one.
    """
    if config["model"]["dtype"] != "auto":
        return config
    dtype = nested.flatten(stored or {}).get("model.dtype", "auto")
    if dtype == "auto":
        dtype = "float32" if backend == "cpu" else "bfloat16"
    model = config["model"].model_copy(update={"dtype": dtype})
    return config.model_copy(update={"model": model})


def differences(stored: Mapping, config: Mapping) -> list[str]:
    """Return `model.depth: 12 before, 8 now` for each key that differs and may not change."""
    before, now = map(nested.flatten, map(to_dict, (completed(stored, "config.json"), config)))
    if "auto" in (before.get("model.dtype"), now.get("model.dtype")):
        before["model.dtype"] = now["model.dtype"] = "auto"  # one of them is not yet resolved
    return [
        f"{name}: {before.get(name, 'missing')} before, {now.get(name, 'missing')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not re.fullmatch(sections.MAY_CHANGE, name)
    ]
