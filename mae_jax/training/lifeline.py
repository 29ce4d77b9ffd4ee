"""A line from each process of a run to the first, which breaks when one of them dies.

jax itself notices by the silence, after the heartbeat. But the system closes the connections of a
process that dies at once, even where all others wait for it inside a collective. A machine that is
gone closes nothing: that is left to the heartbeat.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
from jax._src import distributed  # as orbax does: there is no public way to these

DONE, LEFT = b"done", b"left"  # the last word of one that ends as it should, or by an error
GRACE = 10  # seconds for the others to find the same error
_NAME = "mae_jax/lifeline"


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Inside, this process ends, with status 1, soon after another one does so without a word.

    The first process listens on the address of jax's coordinator, at a port of its own, for those
    that know a random token. Where that cannot be reached there is no line.
    """
    if jax.process_count() == 1:
        yield
        return
    lines: list[socket.socket] = []
    with contextlib.suppress(OSError, ValueError, jax.errors.JaxRuntimeError):
        _open(lines)
    word = LEFT
    try:
        yield
        word = DONE
    except SystemExit:  # asked to stop, as all are
        word = DONE
        raise
    finally:
        while lines:
            line = lines.pop()
            with contextlib.suppress(OSError):
                line.sendall(word)
                line.shutdown(socket.SHUT_WR)


def end(why: str) -> NoReturn:
    """End this process at once: all that is left waits for another one."""
    text = f"error: {why}: the same command continues from the last checkpoint"
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
    os._exit(1)


def _open(lines: list[socket.socket]) -> None:
    state = distributed.global_state
    host = str(state.coordinator_address).rpartition(":")[0].strip("[]")
    store: Any = state.client
    others = jax.process_count() - 1
    if jax.process_index() == 0:
        token, where = secrets.token_hex(16), ""
        try:
            family = socket.getaddrinfo(host, None)[0][0]
            listener = socket.create_server((host, 0), family=family, backlog=others)
            where = f"{listener.getsockname()[1]} {token}"
        finally:  # else the others would wait for it
            store.key_value_set(_NAME, where, allow_overwrite=True)
        _start(_accept, listener, token.encode(), others, lines)
    else:
        port, token = store.blocking_key_value_get(_NAME, 60_000).split()
        line = socket.create_connection((host, int(port)), timeout=30)
        line.settimeout(None)
        line.sendall(token.encode())
        lines.append(line)
        _start(_listen, line, lines)


def _start(target, *arguments) -> None:
    threading.Thread(target=target, args=arguments, daemon=True, name="lifeline").start()


def _accept(listener: socket.socket, token: bytes, others: int, lines: list) -> None:
    with listener:
        while len(lines) < others:
            line, _ = listener.accept()
            line.settimeout(10)
            with contextlib.suppress(OSError):
                if line.recv(len(token), socket.MSG_WAITALL) == token:
                    line.settimeout(None)
                    lines.append(line)
                    _start(_listen, line, lines)
                    continue
            line.close()


def _listen(line: socket.socket, lines: list[socket.socket]) -> None:
    word = b""
    with contextlib.suppress(OSError):
        while part := line.recv(16):
            word += part
    if word == LEFT:
        time.sleep(GRACE)
    if word != DONE and line in lines:
        end("another process has ended")
