"""Members of tar files, in the convention of WebDataset: those with one key are one example."""

import functools
import json
import logging
import math
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mae_jax.data import notices
from mae_jax.data.bad_examples import Unreadable
from mae_jax.data.sources import audio_files, encoded, folders, shards, tables
from mae_jax.data.sources.source import Examples

_log = logging.getLogger(__name__)
ENDINGS = {  # of the inputs of each modality
    "image": (*folders.PICTURES, "npy"),
    "video": folders.VIDEOS,
    "audio": audio_files.EXTENSIONS,
    "volume": ("npy",),
    "signal": ("npy",),
    "text": ("txt",),
}
_MAX_LABEL = 2**20  # bytes of a .cls or .json member


class Member(NamedTuple):
    """The place of a file in a tar file."""

    shard: str
    offset: int
    size: int


def members(place: str, split: str, modality: str) -> Examples:
    """Open the examples in tar files that are not compressed: `GLOB` or `GLOB::ENDING,LABEL`.

    `shards.find` says what GLOB may be, such as `train-{000..009}.tar` or `{split}-*.tar`. The
    name of a member up to the first dot after the last slash is its key, and the rest its ending.
    Members of one key, which follow each other, are an example. Its input is the one whose ending
    is of a file of the modality, or ENDING, such as `left.png`. `.cls` has the number or the name
    of its class; `.json` may have `label`, `labels`, `target`, `split`, `group` and `fold` as in
    `tables.read_csv`, of which LABEL chooses one. An array is a `.npy`.

    The headers are read once when the source is opened, and each example by one read.

    Raises:
      FileNotFoundError: there are no such files.
      ValueError: a file is damaged, compressed or no tar file, or holds links or no such examples.
    """
    pattern, _, chosen = place.partition("::")
    ending, _, label = chosen.partition(",")
    spec = f"webdataset:{place}"
    files = shards.find(pattern, split, "tar", spec)
    endings = (ending,) if ending else ENDINGS[modality]
    shards_of = [_index(path, os.stat(path).st_mtime_ns, endings) for path in files]
    named = [*zip(shards.short_names(files), files.values(), shards_of, strict=True)]
    names = [f"{name}/{key}" for name, _, shard in named for key in shard.keys]
    labels = [
        {"split": of_file, **own} if of_file else own
        for _, of_file, shard in named
        for own in shard.labels
    ]
    if not names:
        raise ValueError(f"data {spec!r} has no members that end in {', '.join(endings)}")
    if without := sum(shard.without for shard in shards_of):
        notices.once(
            _log.warning, f"data {spec!r}: {without:,} keys have no input and are left out"
        )
    table = tables.Table(f"data {spec!r}", names, _columns(labels, f"data {spec!r}"))
    inputs = [member for shard in shards_of for member in shard.inputs]
    return tables.examples(table, split, label, functools.partial(_load, inputs), spec)


class _Shard(NamedTuple):
    keys: Sequence[str]
    inputs: Sequence[Member]
    labels: Sequence[Mapping[str, Any]]  # by the names of columns
    without: int  # keys that have no input


@functools.lru_cache(maxsize=2**14)  # the splits of a source are opened one after the other
def _index(path: str, changed: int, endings: tuple[str, ...]) -> _Shard:
    keys, inputs, labels, without = [], [], [], 0
    for key, members in _examples(path):
        found = [end for end in members if end in endings]
        if len(found) > 1:
            raise ValueError(
                f"{path!r} has inputs {' and '.join(found)} for the key {key!r}: name one by "
                f"::{found[0]}"
            )
        without += not found
        if found:
            keys.append(key)
            inputs.append(members[found[0]])
            labels.append(_labels(members, f"{path}/{key}"))
    return _Shard(keys, inputs, labels, without)


def _examples(path: str) -> Iterator[tuple[str, dict[str, Member]]]:
    """Yield the keys of a tar file with their members by ending.

    Raises:
      ValueError: a member comes twice, or the members of a key do not follow each other.
    """
    last, found, done = None, {}, set()
    for name, member in _members(path):
        folder, slash, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        key = folder + slash + stem
        if not stem:  # hidden
            continue
        if key in done or key == last and ending.lower() in found:
            raise ValueError(
                f"{path!r} has the member {name!r} twice, or apart from others of its key: write "
                "tar files in which the members of each key are different and follow each other"
            )
        if key != last:
            if found:
                yield str(last), found
                done.add(last)
            last, found = key, {}
        found[ending.lower()] = member
    if found:
        yield str(last), found


def _members(path: str) -> Iterator[tuple[str, Member]]:
    """Yield the names and places of the files in a tar file."""
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # pyright: ignore  # they would hold all headers
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise ValueError(
                        f"{path!r} has the member {info.name!r}, which is a link, a device or "
                        "sparse: write tar files of plain files"
                    )
                yield info.name, Member(path, info.offset_data, info.size)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{path!r} is damaged, compressed or no tar file ({error}): bring it again, or unpack "
            "it to .tar"
        ) from error


def _labels(of_key: Mapping[str, Member], name: str) -> dict[str, Any]:
    """Return the values of the columns of a table that the members of an example say."""
    found = {}
    if member := of_key.get("json"):
        try:
            content = json.loads(_read(member, _MAX_LABEL))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}.json is no JSON: {error}") from error
        if isinstance(content, dict):
            found = {key: value for key, value in content.items() if tables.is_known(key)}
    if member := of_key.get("cls"):
        text = _read(member, _MAX_LABEL).decode(errors="surrogateescape").strip()
        found["label"] = int(text) if text.removeprefix("-").isdecimal() else text or None
    return found


def _columns(labels: Sequence[Mapping[str, Any]], title: str) -> dict[str, list[Any]]:
    """Return the columns of a table from the values of each example."""
    columns = {
        name: [own.get(name) for own in labels] for name in {k for own in labels for k in own}
    }
    for name, values in columns.items():
        is_number = name.partition(":")[0] == "target"
        one = (int, float) if is_number else (int, str)
        wrong = [
            value
            for value in values
            for x in (value if name == "labels" and isinstance(value, list) else [value])
            if x is not None and not isinstance(x, one)
        ]
        if wrong:
            raise ValueError(
                f"{title} has {name} {wrong[0]!r}: a class is a text or a whole number, labels are "
                "a list of these, and a target is a number"
            )
        if name in tables.SPLITS:
            columns[name] = [None if value is None else str(value) for value in values]
    return columns


def _load(inputs: Sequence[Member], row: int) -> bytes | np.ndarray:
    return encoded.value(_read(inputs[row], math.inf))


def _read(member: Member, limit: float) -> bytes:
    if member.size > limit:
        raise Unreadable(f"a member of {member.size} bytes is no label")
    with open(member.shard, "rb") as file:
        file.seek(member.offset)
        content = file.read(member.size)
    if len(content) < member.size:
        raise Unreadable(f"{member.shard!r} ends in the middle of the example: bring it again")
    return content
