"""From nested values to a checked config, and back.

A config file returns plain nested values. `validate` makes a `Config` of them, or raises an error
that lists every problem. The keys are defined in `sections.py`.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

from ml_collections import ConfigDict
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mae_jax.config import checks, nested, old_keys, sections
from mae_jax.config.errors import UserError

Config = sections.Config
Rule = Callable[[Any], Iterator[str]]  # config -> what is wrong with its values together


def keys(config: Mapping) -> dict[str, FieldInfo]:
    """The keys that such a config may have, by their dotted names.

    They depend on its task, on the modality of its data, and on the types of its evaluators.
    """
    task, modality = _task(config), nested.get(config, "data.modality")
    data = sections.MODALITIES.get(str(modality or "image"), sections.Data)
    known = _keys(sections.TASKS.get(task, Config), "") | _keys(data, "data.")
    evaluators = config.get("evaluators")
    for name, entry in evaluators.items() if isinstance(evaluators, Mapping) else ():
        types = sections.EVALUATORS.get(task, {})
        if kind := types.get(str(nested.get(entry, "type"))):
            known |= _keys(kind, f"evaluators.{name}.")
    return known


def _task(config: Mapping) -> str:
    return str(config.get("task", "pretrain"))


def _keys(kind: type[sections.Section], prefix: str) -> dict[str, FieldInfo]:
    """The keys of a section and of those in it, but for `data` and `evaluators`."""
    known = {}
    for name, field in kind.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, sections.Section):
            known |= _keys(section, f"{prefix}{name}.")
        elif name not in ("data", "evaluators") or prefix:
            known[prefix + name] = field
    return known


def expected(field: FieldInfo) -> str:
    """What the value of a key must be."""
    return field.title or _one_of(get_args(field.annotation))


def section(kind: type[sections.Section], values: Mapping) -> Any:
    """The section of a kind with these values. ValueError: each value that is wrong."""
    try:
        return kind.model_validate({**values})
    except ValidationError as error:
        wrong = _wrong_values(error, {**values}, _keys(kind, ""))
        raise ValueError("; ".join(wrong.values())) from error


def validate(config: Mapping, rules: Sequence[Rule] = (), problems: Iterable[str] = ()) -> Config:
    """Check nested values, which may have old names, and return the config.

    Args:
      rules: further rules beside those of `checks.py`, such as `models.rules.RULES`.
      problems: sentences about problems that are known already.

    Raises:
      UserError: all that is wrong, each with its value and a way out.
    """
    values = _read(config)
    of_task = checks.TASK_RULES.get(_task(values), ())
    found, checked = examine(values, (*checks.RULES, *of_task, *rules))
    if problems := sorted({*problems, *found}):
        raise UserError("; ".join(problems))
    return checked


def _read(config: Mapping, place: str = "the config") -> dict:
    """Nested dicts under current names, without the evaluators that have no source."""
    values = old_keys.renamed(nested.plain(config), place)
    if isinstance(values.get("data"), dict):
        values["data"].setdefault("modality", "image")  # which other keys depend on
    if isinstance(entries := values.get("evaluators"), dict):
        values["evaluators"] = {name: x for name, x in entries.items() if not _left_out(x)}
    return values


def _left_out(entry: Any) -> bool:
    """Whether an evaluator is None or one of its sources is empty."""
    flat = nested.flatten({"entry": entry})
    return entry is None or any(k.endswith(".source") and x == "" for k, x in flat.items())


def examine(values: dict, rules: Sequence[Rule]) -> tuple[list[str], Any]:
    """Return the problems of nested values by the schema and these rules, and the config.

    If some values are wrong by themselves, the rules see a config of the others.
    """
    if _task(values) not in sections.TASKS:
        return [f"task = {values['task']!r} must be {_one_of(sections.TASKS)}"], None
    problems = {}
    try:
        config: Any = sections.TASKS[_task(values)].model_validate(values)
    except ValidationError as error:
        known, flat = keys(values), nested.flatten(values)
        problems = _wrong_values(error, values, known)
        right = {x: flat.get(x, known[x].default) for x in known if x not in problems}
        config = ConfigDict(nested.unflatten(right))
    contradictions = []
    for rule in rules:
        try:
            contradictions += rule(config)
        except (AttributeError, KeyError):
            if not problems:
                raise  # a mistake of the rule, as no value is missing
    return [*problems.values(), *contradictions], config


def _wrong_values(
    error: ValidationError, values: dict, known: dict[str, FieldInfo]
) -> dict[str, str]:
    """The problem of each key whose value is wrong by itself."""
    problems = {}
    for part in error.errors(include_url=False):
        name = _name(part["loc"], known)
        value = nested.get(values, name)
        inside = [x for x in known if x == name or x.startswith(f"{name}.")]
        if part["type"] == "missing":
            required = [x for x in inside if known[x].is_required()]
            problems |= {x: f"{x} is missing" for x in required}
        elif part["type"] == "union_tag_invalid":
            context = part.get("ctx", {})
            key, tags = context["discriminator"].strip("'"), context["expected_tags"]
            problems[f"{name}.{key}"] = f"{name}.{key} = {value[key]!r} must be one of {tags}"
        elif name == "evaluators":
            problems[name] = f"{name} = {value!r} must be sections such as {name}.knn.type='knn'"
        elif name in known and not isinstance(value, dict):
            problems[name] = f"{name} = {value!r} must be {expected(known[name])}"
        else:
            names = list(nested.flatten({name: value})) if isinstance(value, dict) else [name]
            problems |= {x: unknown(x, known) for x in names}
            problems |= dict.fromkeys(inside, unknown(names[0], known))
    return problems


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(map(repr, names))


def _name(location: tuple, known: Iterable[str]) -> str:
    """The dotted name of the key of an error, without pydantic's names for members of unions."""
    union = {"data": 1, "evaluators": 2}.get(location[0])  # the depth of the member's name
    parts = [str(part) for depth, part in enumerate(location) if depth != union]
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return next((name for name in names if name in known), names[-1])


def unknown(name: str, known: Iterable[str]) -> str:
    """The sentence about a key that no config has."""
    if inside := [x for x in known if x.startswith(f"{name}.")]:
        return f"{name} is no config key, but has some: {', '.join(sorted(inside))}"
    near = difflib.get_close_matches(name, list(known), 1, cutoff=0.4)
    return f"unknown config key {name}" + (f": did you mean {near[0]}?" if near else "")


def completed(config: Mapping, place: str = "the config") -> dict:
    """Nested dicts under current names, with every key that has a default.

    Args:
      place: where the config is from, for a warning about old names.
    """
    values = _read(config, place)
    defaults = {x: key.default for x, key in keys(values).items() if not key.is_required()}
    return nested.unflatten(defaults | nested.flatten(values))


def updated(config: Mapping, changes: Mapping[str, Any], rules: Sequence[Rule] = ()) -> Config:
    """The config with some values replaced, such as `{"model.remat": "inputs"}`, and checked again.

    None removes an evaluator.
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

    A run keeps the precision that it began with, also on other devices.

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
    """`model.depth: 12 before, 8 now` for each key that is not the same and may not change."""
    before, now = map(nested.flatten, map(to_dict, (completed(stored, "config.json"), config)))
    if "auto" in (before.get("model.dtype"), now.get("model.dtype")):
        before["model.dtype"] = now["model.dtype"] = "auto"  # one is from before it was resolved
    return [
        f"{name}: {before.get(name, 'missing')} before, {now.get(name, 'missing')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not re.fullmatch(sections.MAY_CHANGE, name)
    ]
