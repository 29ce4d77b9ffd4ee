"""Train: python -m mae_jax.train --config=configs/NAME.py --workdir=DIR [--config.key=value ...]

The same command continues a run. Two options change a run that has begun:
  --extend=EPOCHS     train for more epochs, EPOCHS in all
  --relocate=OLD=NEW  read from the place NEW what was read from OLD
"""

# ruff: noqa: E402
if __name__ == "__main__":  # a signal during the imports ends the process: nothing is lost
    import os
    import signal

    signal.signal(signal.SIGTERM, lambda *_: os._exit(42))
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import logging
import sys

import jax

from mae_jax.config import command_line, reference
from mae_jax.config.errors import UserError, user_errors
from mae_jax.distributed import processes
from mae_jax.models import rules
from mae_jax.output import console
from mae_jax.training import checkpoints
from mae_jax.training.run import train

__all__ = ["main", "train"]
MEMORY = (
    "error: the devices have too little memory: try a higher accumulation or mesh.fsdp, "
    "optimizer.shard, model.remat=inputs, or a smaller batch_size (%s)"
)
LOST = "error: another process is gone (%s): the same command continues from the last checkpoint"


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit status 2."""
    if {"-h", "--help", "--helpshort"} & set(sys.argv):
        print(f"{__doc__}\n\n{reference.page()}")
        return
    console.install()
    checkpoints.ignore_late_errors()
    log = logging.getLogger("mae_jax")
    try:
        changes, arguments = command_line.parse_changes(sys.argv[1:])
        config, workdir = command_line.parse(arguments, rules.RULES)
        with user_errors():
            processes.start_processes(config.recovery.heartbeat_timeout)
        if jax.process_index():
            log.setLevel(logging.WARNING)  # the first process logs for all
        train(config, workdir, **changes, own_process=True)
    except UserError as error:
        log.error("error: %s", error)
        processes.leave(2)
    except SystemExit as request:
        processes.exit_in_any_case(int(request.code or 0))
        raise
    except KeyboardInterrupt:
        log.error("stopped: the same command continues from the last checkpoint")
        processes.leave(130)
    except jax.errors.JaxRuntimeError as error:
        first_line = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in first_line:
            log.error(MEMORY, first_line)
            processes.leave(2)
        if jax.process_count() == 1:
            raise
        log.error(LOST, first_line)
        processes.leave(1)
    finally:
        console.flush()


if __name__ == "__main__":
    main()
