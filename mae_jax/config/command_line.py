"""The config of a command: values of a file, changed by the command line and checked.

A config file defines `get_config(arg: str = "")`, which returns a dict or an
`ml_collections.ConfigDict` of plain values, and imports nothing of this package. The syntax
`--config.key=value` is that of `ml_collections.config_flags`, whose parser is not used because it
stops at the first mistake and infers the type of a value from the config file.
"""

import argparse
import ast
import collections
import difflib
import math
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mae_jax.config import find, nested, old_keys, schema
from mae_jax.config.errors import UserError, user_errors

OPTIONS = ("--config", "--workdir", "--extend", "--relocate")


class Parser(argparse.ArgumentParser):
    """A parser that raises `UserError` where argparse would exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def numbers(kind: type) -> Callable[[str], tuple]:
    """Return the type of an argument such as `224,224`."""

    def parse(text: str) -> tuple:
        try:
            return tuple(kind(part) for part in text.strip("()").split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} should be {'whole ' if kind is int else ''}numbers such as "
                f"{'224,224' if kind is int else '0.5,0.5'}"
            ) from None

    return parse


def assignment(text: str) -> tuple[str, Any]:
    """Return the name and the value of an argument such as `pooling=norm_mean`."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} should be NAME=VALUE, as pooling=norm_mean")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):  # a word
        return name, value


def epochs(text: str) -> float:
    """Return the number of an argument such as `--extend=100`."""
    try:
        if 0 < (value := float(text)) < math.inf:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} should be the number of all epochs, such as 100")


def relocation(text: str) -> tuple[str, str]:
    """Return both places of an argument such as `--relocate=/old/place=/new/place`."""
    before, *rest = (place.rstrip("/") for place in text.split("="))
    if len(rest) != 1 or not (before and rest[0]) or before == rest[0]:
        raise argparse.ArgumentTypeError(f"{text!r} should be OLD=NEW, two places of files")
    return before, rest[0]


def parse_changes(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments `extend` and `relocate` of `train`, and all other arguments."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--extend", type=epochs)
    parser.add_argument("--relocate", type=relocation, action="append", default=[])
    options, rest = parser.parse_known_args(arguments)
    return dict(extend=options.extend, relocate=dict(options.relocate)), rest


def parse(arguments: Sequence[str], rules: Sequence[schema.Rule] = ()) -> tuple[schema.Config, str]:
    """Parse `--config=PATH[:ARGUMENT] --workdir=DIR [--config.key=value ...]`.

    Args:
      rules: see `schema.validate`.

    Raises:
      UserError: every problem of the arguments and of the config.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    for option in OPTIONS[:2]:
        parser.add_argument(option)
    options, changes = parser.parse_known_args(arguments)
    if not options.config:
        raise UserError("which config? Give --config=configs/NAME.py, for example quickstart.py")
    problems = [] if options.workdir else ["where should the run be written? Give --workdir=DIR"]
    with user_errors():
        return configured(options.config, changes, problems, rules), str(options.workdir)


def configured(
    spec: str,
    changes: Iterable[str],
    problems: Sequence[str] = (),
    rules: Sequence[schema.Rule] = (),
) -> schema.Config:
    """Return the checked config of a file, changed by `--config.key[=value]`, `--noconfig.key`.

    `--noconfig.evaluators.NAME` removes an evaluator.

    Args:
      problems, rules: see `schema.validate`.

    Raises:
      UserError, ValueError: every problem of the config.
    """
    values, problems, arguments = load(spec), list(problems), collections.deque(changes)
    while arguments:
        argument = arguments.popleft()
        name, equals, text = argument.partition("=")
        key = re.sub(r"^--(no)?config\.", "", name)
        kind = _kind(values, key)
        if name.startswith("--noconfig.") and not equals:
            is_evaluator = re.fullmatch(r"evaluators\.[^.]+", key)
            if is_evaluator and nested.get(values, key) is None:
                names = [f"evaluators.{entry}" for entry in values.get("evaluators", {})]
                problems.append(schema.unknown(key, names))
            nested.put(values, key, None if is_evaluator else False)
        elif name.startswith("--config."):
            if not equals and kind in (bool, None):
                text = "true"
            elif not equals and (not arguments or arguments[0].startswith("--")):
                problems.append(f"{name} needs a value: {name}=...")
                continue
            elif not equals:
                text = arguments.popleft()
            nested.put(values, key, _value(text, kind))
        elif name.startswith("-"):
            matches = difflib.get_close_matches(name, OPTIONS, 1)
            hint = f": did you mean {matches[0]}?" if matches else ""
            problems.append(f"unknown option {name}{hint}")
        else:
            problems.append(f"stray argument {argument!r}: values are given as --config.key=value")
    return schema.validate(old_keys.renamed(values, "the command line"), rules, problems)


def _kind(values: dict, name: str) -> Any:
    """Return the type of a key, given by its new or old name; None if there is no such key."""
    name = old_keys.new_names(name, values.get("evaluators", {}))[0]
    fields = schema.keys(values)
    return fields[name].annotation if name in fields else None


def _value(text: str, kind: Any) -> Any:
    """Return the value of an argument; `schema.validate` refuses values of a wrong type."""
    if kind is str:
        return text
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def load(spec: str) -> dict:
    """Return the values of a config file, `PATH` or `PATH:ARGUMENT`, completed by defaults.

    Raises:
      ValueError: the file does not exist, is not a config, or does not accept the argument.
    """
    name, _, argument = spec.partition(":")
    path = find.find_config(name)
    # A variant says `from configs import vit_base`: this file is beside the variant, or shipped.
    old_path = list(sys.path)
    sys.path[:0] = [str(path.resolve().parent.parent), str(find.SHIPPED)]
    try:
        config = _run(path, name, argument)
    finally:
        sys.path[:] = old_path
    if not hasattr(config, "items"):
        raise ValueError(f"get_config of config file {name!r} returns no dict but {config!r}")
    return schema.completed(config, name)


def _run(path: Path, name: str, argument: str) -> Any:
    try:
        module = runpy.run_path(str(path))
    except Exception as error:  # the file may hold any Python
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"config file {name!r} cannot be read: {reason}") from error
    if "get_config" not in module:
        raise ValueError(f"config file {name!r} does not define get_config(arg)")
    try:
        return module["get_config"](argument)
    except ValueError:
        raise  # such as an unknown argument
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"get_config(arg) of config file {name!r} fails: {reason}") from error
