"""Read a config file, change values from the command line, and check the result.

A config file defines `get_config(arg: str = "")`, which returns a dict or an
`ml_collections.ConfigDict` of plain values, and imports nothing of this package. The syntax
`--config.key=value` is that of `ml_collections.config_flags`, whose parser is not used because it
stops at the first mistake and takes the type of a value from the config file.
"""

import argparse
import ast
import collections
import contextlib
import difflib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from mae_jax.config import find, nested, old_keys, schema
from mae_jax.config.errors import UserError, user_errors


def parse(arguments: Sequence[str], rules: Sequence[schema.Rule] = ()) -> tuple[schema.Config, str]:
    """`--config=PATH[:ARGUMENT] --workdir=DIR [--config.key=value ...]` -> config, workdir.

    Args:
      rules: see `schema.validate`.

    Raises:
      UserError: all that is wrong with the arguments or with the config.
    """
    options: dict[str, str | None] = {"--config": None, "--workdir": None}
    changes, left = [], iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        if name in options:
            options[name] = value if equals else next(left, "")
            if (options[name] or "").startswith("--"):
                raise UserError(f"{name} needs a value, and {options[name]} is the next option")
        else:
            changes.append(argument)
    spec, workdir = options.values()
    if not spec:
        raise UserError("which config? Give --config=configs/NAME.py, for example quickstart.py")
    problems = [] if workdir else ["where should the run be written? Give --workdir=DIR"]
    with user_errors():
        return configured(spec, changes, tuple(options), problems, rules), str(workdir)


def configured(
    spec: str,
    changes: Sequence[str],
    options: Sequence[str] = (),
    problems: Sequence[str] = (),
    rules: Sequence[schema.Rule] = (),
) -> schema.Config:
    """The checked config of a file with `--config.key=value`, `--config.key`, `--noconfig.key`.

    `--noconfig.evaluators.NAME` removes an evaluator.

    Args:
      options: further names of options, which are offered for an unknown one.
      problems, rules: see `schema.validate`.

    Raises:
      UserError, ValueError: all that is wrong with it.
    """
    values, problems, strays = load(spec), list(problems), []
    left = collections.deque(changes)
    while left:
        name, equals, text = (argument := left.popleft()).partition("=")
        key = name.removeprefix("--no").removeprefix("--").removeprefix("config.")
        if name.startswith("--noconfig.") and not equals:
            is_evaluator = key.startswith("evaluators.") and key.count(".") == 1
            problems += _change(values, key, None if is_evaluator else False)
        elif name.startswith("--config."):
            if not equals and (found := _key(values, key)) and found.field.annotation is not bool:
                if not left or left[0].startswith("--"):
                    problems.append(f"{name} needs a value: {name}=...")
                    continue
                text = left.popleft()
            elif not equals:
                text = "true"
            problems += _change(values, key, _value(text, _key(values, key)))
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
    return schema.validate(old_keys.renamed(values, "the command line"), rules, problems)


def _key(values: dict, name: str) -> schema.Key | None:
    """The schema of a key under its name of today, if there is such a key."""
    names = old_keys.new_names(name, values.get("evaluators", {}))
    return schema.keys(values).get(names[0])


def _change(values: dict, name: str, value: Any) -> list[str]:
    """Set a value; what is wrong with its name that `schema.validate` cannot see."""
    known = schema.keys(values)
    if any(name.startswith(f"{key}.") for key in known):
        return [schema.unknown(name, known)]
    nested.put(values, name, value)
    return []


def _value(text: str, key: schema.Key | None) -> Any:
    """The value of an argument. `schema.validate` says if it is of the wrong type."""
    kind = key.field.annotation if key else None
    if kind is str:
        return text
    words = {"true": True, "false": False} | {x: float(x) for x in ("nan", "inf", "-inf")}
    words |= {"1": True, "0": False} if kind is bool else {}
    if text.lower() in words:
        return words[text.lower()]
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def load(spec: str) -> dict:
    """The values of a config file, `PATH` or `PATH:ARGUMENT`, with those of the schema's defaults.

    Raises:
      ValueError: there is no such file, or it is not a config, or does not know the argument.
    """
    name, _, argument = spec.partition(":")
    path = find.find_config(name)
    # A variant says `from configs import vit_base`: that is beside it, or shipped.
    before = list(sys.path)
    sys.path[:0] = [str(path.resolve().parent.parent), str(find.SHIPPED)]
    try:
        module = _module(path, name)
        try:
            config = module.get_config(argument)
        except ValueError:
            raise
        except Exception as error:
            why = _said(error)
            raise ValueError(f"get_config(arg) of config file {name!r} fails: {why}") from error
    finally:
        sys.path[:] = before
    if not hasattr(config, "items"):
        raise ValueError(f"get_config of config file {name!r} returns no dict but {config!r}")
    return schema.completed(old_keys.renamed(nested.plain(config), name))


def _module(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"config file {name!r} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file may hold any Python
        raise ValueError(f"config file {name!r} cannot be read: {_said(error)}") from error
    if not hasattr(module, "get_config"):
        raise ValueError(f"config file {name!r} does not define get_config(arg)")
    return module


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


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
