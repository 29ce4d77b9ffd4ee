"""Find anomalies: python -m mae_jax.applications.anomaly fit|score|evaluate [...]

fit learns from good examples alone and writes a detector, a folder; score says of other examples
how unlike them they are, and where; evaluate measures that on examples with masks. In Python:
`from mae_jax.applications import anomaly` and `anomaly.fit(...)`.
"""

import argparse

import jax

from mae_jax.applications.anomaly import run_evaluate, run_fit, run_score
from mae_jax.config import command_line, errors
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import processes
from mae_jax.output import console

COMMANDS = {"fit": run_fit, "score": run_score, "evaluate": run_evaluate}


def parser() -> argparse.ArgumentParser:
    options: dict = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p = command_line.Parser(
        "python -m mae_jax.applications.anomaly", description=__doc__, **options
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, module in COMMANDS.items():
        module.add_options(commands.add_parser(name, description=module.__doc__, **options))
    return p


def main() -> None:
    """The command line; a user's mistake ends in one sentence and exit status 2."""
    with errors.exits((ValueError, OSError, ImportError, Unreadable)):
        options = parser().parse_args()
        console.install()
        processes.start_processes()
        if jax.process_count() > 1:
            raise ValueError("a detector works in one process: start one")
        print(COMMANDS[options.command].run(options))


if __name__ == "__main__":
    main()
