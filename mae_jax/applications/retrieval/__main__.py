"""Find similar examples: python -m mae_jax.applications.retrieval COMMAND [...]

index makes an index of examples, a folder; add and remove change it; search finds the examples of
an index that are most similar to others; evaluate says how well it finds them. In Python: `from
mae_jax.applications import retrieval` and `retrieval.Index`.
"""

import argparse

import jax

from mae_jax.applications.retrieval import run_add, run_evaluate, run_index, run_remove, run_search
from mae_jax.config import command_line, errors
from mae_jax.data.bad_examples import Unreadable
from mae_jax.distributed import processes
from mae_jax.output import console

COMMANDS = {
    "index": run_index,
    "add": run_add,
    "remove": run_remove,
    "search": run_search,
    "evaluate": run_evaluate,
}


def parser() -> argparse.ArgumentParser:
    options: dict = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p = command_line.Parser(
        "python -m mae_jax.applications.retrieval", description=__doc__, **options
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
            raise ValueError("retrieval works in one process, on all of its devices: start one")
        print(COMMANDS[options.command].run(options))


if __name__ == "__main__":
    main()
