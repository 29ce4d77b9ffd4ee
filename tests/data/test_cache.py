"""Large values are read once, and the cache is bounded by their bytes."""

import threading
import time

import numpy as np
import pytest

from mae_jax.data.cache import Cache


def test_the_cache_reads_once_and_is_bounded():
    reads, cache = [], Cache(limit=100)

    def get(key):
        def read():
            time.sleep(0.01)  # the other threads come meanwhile
            reads.append(key)
            return np.zeros(40, np.uint8)

        return cache.get(key, read)

    threads = [threading.Thread(target=get, args="a") for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == ["a"]
    for key in "baca":  # c drops b, which was used before a
        get(key)
    assert reads == ["a", "b", "c"]
    get("b")
    assert reads[3:] == ["b"]


def test_what_cannot_be_read_is_read_again():
    cache = Cache(limit=100)

    def fail():
        raise OSError("not now")

    with pytest.raises(OSError, match="not now"):
        cache.get("a", fail)
    assert cache.get("a", lambda: np.ones(3)).sum() == 3
