"""Read a config, override it from the command line, and say what is wrong with it.

A config file defines `get_config(arg: str = "") -> dict` of plain values and imports nothing of
this package.
"""

import argparse
import ast
import collections
import contextlib
import difflib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from mae_jax.config import checks, find, schema
from mae_jax.config.errors import UserError, user_errors

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def load(spec: str) -> dict:
    """The values of a config file, `PATH` or `PATH:ARGUMENT`, and `fields.DEFAULTS`.

    Raises:
      ValueError: there is no such file, or it is not a config, or does not know the argument.
    """
    name, _, argument = spec.partition(":")
    path = find.find_config(name)
    # A variant says `from configs import vit_base`: that is beside it, or shipped.
    before = list(sys.path)
    sys.path[:0] = [str(path.resolve().parent.parent), str(find.SHIPPED)]
    try:
        module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        if module_spec is None or module_spec.loader is None:
            raise ValueError(f"config file {name!r} is not a Python file (.py)")
        module = importlib.util.module_from_spec(module_spec)
        try:
            module_spec.loader.exec_module(module)
        except Exception as error:  # it is any Python
            raise ValueError(f"config file {name!r} cannot be read: {_said(error)}") from error
        if not hasattr(module, "get_config"):
            raise ValueError(f"config file {name!r} does not define get_config(arg)")
        try:
            config = module.get_config(argument)
        except ValueError:
            raise
        except Exception as error:
            why = _said(error)
            raise ValueError(f"get_config(arg) of config file {name!r} fails: {why}") from error
    finally:
        sys.path[:] = before
    if not isinstance(config, dict):
        raise ValueError(f"get_config of config file {name!r} returns no dict but {config!r}")
    return _with_floats(completed(config))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def parse(argv: Sequence[str]) -> "tuple[ConfigDict, str]":
    """`--config=PATH[:ARGUMENT] --workdir=DIR [--config.key=value ...]` -> config, workdir.

    Raises:
      UserError: all that is wrong with the arguments or with the config.
    """
    from ml_collections import ConfigDict  # here, so that configs can be loaded without it

    options: dict[str, str | None] = {"--config": None, "--workdir": None}
    changes, arguments = [], iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in options:
            options[name] = value if equals else next(arguments, "")
            if (options[name] or "").startswith("--"):
                raise UserError(f"{name} needs a value, and {options[name]} is the next option")
        else:
            changes.append(argument)
    spec, workdir = options.values()
    if not spec:
        raise UserError("which config? Give --config=configs/NAME.py, for example quickstart.py")
    problems = [] if workdir else ["where should the run be written? Give --workdir=DIR"]
    with user_errors():
        config = configured(spec, changes, tuple(options), problems)
    return ConfigDict(config), str(workdir)


def configured(
    spec: str, changes: Sequence[str], options: Sequence[str] = (), problems: Sequence[str] = ()
) -> dict:
    """The checked config of a file with `--config.key=value`, `--config.key`, `--noconfig.key`.

    Args:
      options: other names of arguments that there are, to be offered for one that is not.
      problems: that are known already.

    Raises:
      UserError, ValueError: all that is wrong with it.
    """
    config, problems, strays = load(spec), list(problems), []
    left = collections.deque(changes)
    while left:
        name, equals, text = (argument := left.popleft()).partition("=")
        field = schema.ALL.get(name.removeprefix("--config."))
        if name.startswith("--noconfig.") and not equals:
            problems += _set(config, name.removeprefix("--noconfig."), "false")
        elif name.startswith("--config."):
            if not equals:
                text = "true"
                if field is not schema.BOOL and field is not None:
                    if not left or left[0].startswith("--"):
                        problems.append(f"{name} needs a value: {name}=...")
                        continue
                    text = left.popleft()
            problems += _set(config, name.removeprefix("--config."), text)
        elif name.startswith("-"):
            near = difflib.get_close_matches(name, options, 1)
            problems.append(
                f"unknown option {name}" + (f": did you mean {near[0]}?" if near else "")
            )
        else:
            strays.append(argument)
    if strays:
        problems.append(
            f"stray argument(s) {' '.join(strays)}: values are given as --config.key=value"
        )
    if problems := sorted({*problems, *problems_of(config)}):
        raise UserError("; ".join(problems))
    return _with_floats(config)


def _set(config: dict, name: str, text: str) -> list[str]:
    """Change one value; what is wrong with its name."""
    flat = flatten(config)
    if name not in flat or name not in schema.ALL:
        return [schema.unknown(name, flat)]
    field, value = schema.ALL[name], text
    if field is schema.BOOL:
        value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    elif field.types != (str,):
        with contextlib.suppress(ValueError, SyntaxError):  # `check` says what it must be
            value = float(text) if text in ("nan", "inf", "-inf") else ast.literal_eval(text)
    *sections, key = name.split(".")
    for section in sections:
        config = config[section]
    config[key] = value
    return []


def _with_floats(config: dict, prefix: str = "") -> dict:
    """Whole numbers as floats where fractions are allowed: a ConfigDict keeps the type of each."""
    converted = {}
    for key, value in config.items():
        name, wanted = prefix + key, schema.ALL.get(prefix + key)
        if isinstance(value, dict):
            value = _with_floats(value, name + ".")
        elif type(value) is int and wanted and float in wanted.types:
            value = float(value)
        converted[key] = value
    return converted


def completed(config: dict) -> dict:
    """A config with `fields.DEFAULTS` where it lacks them."""
    config = {key: dict(x) if hasattr(x, "items") else x for key, x in config.items()}
    for name, value in schema.DEFAULTS.items():
        if name in schema.FIELDS.get(config.get("task", ""), ()):
            section, _, key = name.rpartition(".")
            place = config.setdefault(section, {}) if section else config
            if hasattr(place, "items"):
                place.setdefault(key, value)
    return config


def flatten(config, prefix: str = "") -> dict[str, Any]:
    """`{"model.patch": (16, 16), ...}` of a nested config."""
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def check(config) -> None:
    """Refuse a config that cannot run, before anything is compiled.

    Raises:
      UserError: all that is wrong, each with its value and the way out.
    """
    if problems := problems_of(config):
        raise UserError("; ".join(problems))


def problems_of(config) -> list[str]:
    """All that is wrong with a config: its keys, its values, and what these are together."""
    flat = flatten(config)
    problems, values = schema.wrong_keys(flat), schema.wrong_values(flat)
    if not {"task", "data.modality"} & values.keys():
        problems += checks.of({x: flat[x] for x in flat.keys() - values.keys()})
    return sorted({*problems, *values.values()})


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def numbers(kind: type) -> Callable[[str], tuple]:
    """The type of an argument such as `224,224`."""

    def parse(text: str) -> tuple:
        try:
            return tuple(kind(part) for part in text.strip("()").split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} should be numbers such as {'224,224' if kind is int else '0.5,0.5'}"
            ) from None

    return parse


def to_dict(config) -> dict:
    """Plain dicts and lists, as `config.json` of a work directory holds them."""
    nested = lambda c: {k: nested(v) if hasattr(v, "items") else v for k, v in c.items()}
    return json.loads(json.dumps(nested(config)))


def to_json(config) -> str:
    return json.dumps(to_dict(config), indent=2) + "\n"


def differences(stored: dict, config) -> list[str]:
    """`model.depth: 12 there, 8 here` for each field that is not the same and may not change."""
    there, here = flatten(to_dict(completed(stored))), flatten(to_dict(config))
    return [
        f"{name}: {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name) and not re.fullmatch(schema.MAY_CHANGE, name)
    ]
