"""Prefixes of parameter names, such as the `module.` of PyTorch's DistributedDataParallel."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Recognise = Callable[[Iterable[str]], Any]  # raises ValueError for names of no known family

# Modules around other modules, anywhere in a name: of torch.compile, FSDP, activation checkpoints.
WRAPPING = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# What code calls a network that is part of another module. Of several, the first is read.
PARTS = ("module", "model", "backbone", "encoder", "net", "student", "teacher", "model_ema", "ema")
DEEPEST = 3  # parts in one prefix
_log = logging.getLogger(__name__)


def remove(
    path: Path, tensors: Mapping[str, T], recognise: Recognise, prefix: str = ""
) -> dict[str, T]:
    """Return the tensors of a network under names without a prefix, and log what was removed.

    A prefix is removed if the names with it are of no known family, but the names under it are.

    Args:
      path: of the file, for messages.
      prefix: the choice of the user, such as "teacher."; only tensors under it are returned.

    Raises:
      ValueError: the file has no names under `prefix`, or no usual prefix makes the names known.
    """
    plain = {WRAPPING.sub("", name): x for name, x in tensors.items()}
    if len(plain) < len(tensors):
        raise ValueError(
            f"{path} has {len(tensors)} names, but {len(plain)} without _orig_mod. and the like"
        )
    if prefix:
        found, others = WRAPPING.sub("", prefix.rstrip(".") + "."), []
    else:
        found, others = _find(path, plain, recognise)
    if not (inside := _under(plain, found)):
        raise ValueError(
            f"{path} has no names under the prefix {prefix!r}, but {_beginnings(plain)}"
        )
    wrapping = {match[0] for name in tensors for match in WRAPPING.finditer(name)}
    if removed := [*filter(None, [found]), *sorted(wrapping)]:
        line = f"{path}: {', '.join(removed)} removed from the names of {len(inside)} tensors"
        if aside := [name for name in plain if not name.startswith(found)]:
            line += f"; {len(aside)} others left aside: {_beginnings(aside)}"
        if others:
            line += f"; prefix= would choose {' or '.join(others)}"
        _log.log(logging.WARNING if aside and not prefix else logging.INFO, line)
    return inside


def _find(path: Path, tensors: Mapping[str, Any], recognise: Recognise) -> tuple[str, list[str]]:
    """Return the prefix to remove, "" for none, and others that could be removed instead."""
    try:
        recognise(tensors)
        return "", []
    except ValueError as error:
        unknown = error

    def is_known(prefix: str) -> bool:
        try:
            recognise(_under(tensors, prefix))
            return True
        except ValueError:
            return False

    prefixes = _prefixes(tensors)
    usual = [name for name in prefixes if set(name[:-1].split(".")) <= set(PARTS)]
    known: list[str] = []
    for name in sorted(usual, key=lambda name: [PARTS.index(x) for x in name[:-1].split(".")]):
        if not name.startswith(tuple(known)) and is_known(name):  # the shortest that helps
            known.append(name)
    if known:
        return known[0], known[1:]
    # Names in a decoder may look like those of an encoder, but are no network.
    rest = [name for name, n in prefixes.most_common(100) if n > 1 and "decoder" not in name]
    helps = next(filter(is_known, rest), "")
    way = f": give prefix={helps} to read what is under it" if helps else ""
    raise ValueError(f"{path}: {unknown}; it has {_beginnings(tensors)}{way}") from unknown


def _under(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    return {name[len(prefix) :]: x for name, x in tensors.items() if name.startswith(prefix)}


def _prefixes(names: Iterable[str]) -> Counter[str]:
    """Return the prefixes of names, of up to `DEEPEST` parts, and how many names have each."""
    parts = [name.split(".", DEEPEST)[:-1] for name in names]
    return Counter(".".join(p[: i + 1]) + "." for p in parts for i in range(len(p)))


def _beginnings(names: Iterable[str]) -> str:
    """Return the first parts of names, and how many names have each."""
    counts = Counter(re.sub(r"\..*", ".", name, flags=re.DOTALL) for name in names).most_common()
    listed = [f"{name} ({n})" for name, n in counts[:6]]
    return ", ".join(listed + ["..."] * (len(counts) > 6))
