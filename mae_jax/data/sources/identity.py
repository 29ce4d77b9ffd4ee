"""A number that tells the examples of one source from those of another."""

import json
import posixpath
import zlib

import numpy as np

from mae_jax.data.sources.source import Source, fixed_choice


def checksum(source: Source, limit: int = 1000) -> int:
    """Return the CRC-32 of names and labels of `limit` examples, a fixed random choice.

    It stays the same when the files move: of a name that is a path, only the last part counts.
    Labels that are known only after reading an example are left out.
    """
    chosen = fixed_choice(len(source), limit)
    names = [posixpath.basename(source.name(int(i))) for i in chosen]
    labels = getattr(source, "labels", None)
    known = [] if labels is None else [np.asarray(labels[i]).tolist() for i in chosen]
    return zlib.crc32(json.dumps([names, known]).encode())
