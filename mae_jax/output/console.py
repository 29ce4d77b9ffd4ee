"""The lines of the logger `mae_jax` on the screen."""

import contextlib
import logging
import os
import sys


class LineHandler(logging.Handler):
    """A handler of plain lines: warnings and errors go to stderr, the others to stdout.

    A line does not tear a progress bar. A line that cannot be written, as on a full disk, is lost.
    """

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        with contextlib.suppress(OSError, ValueError, AttributeError):
            tqdm.write(self.format(record), file=stream)
            stream.flush()


def install() -> None:
    """Show the lines of `mae_jax` on the screen; for commands, as this changes the process."""
    logger = logging.getLogger("mae_jax")
    if not any(isinstance(handler, LineHandler) for handler in logger.handlers):
        logger.addHandler(LineHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # orbax adds a handler to the root logger
    # orbax logs a page for each save, and a traceback for each error before raising the error
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def flush() -> None:
    """Write the buffered lines, so that an exit does not fail on a full disk or a closed pipe."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
