"""Plan a run: does it fit, what limits a step, how long will it take? Nothing is trained.

python -m mae_jax.plan --config=configs/vit_huge.py --topology=v5e:16x16  # extra [tpu], no TPU
python -m mae_jax.plan --config=configs/vit_base.py --topology=v6e:4x4 --mesh=data=4,fsdp=4
python -m mae_jax.plan --config=configs/vit_base.py --topology=h100:8     # arithmetic only
python -m mae_jax.plan --config=configs/quickstart.py --topology=cpu      # or gpu: of this host
"""

import argparse

from mae_jax.config import command_line, errors
from mae_jax.models import rules
from mae_jax.output import console, files
from mae_jax.planning import estimate, report, topology


def mesh_changes(text: str) -> list[str]:
    """Turn `--mesh=data=32,fsdp=8` into changes of the config."""
    axes = [axis.partition("=") for axis in text.split(",")]
    if not all(name in ("data", "fsdp", "tensor") for name, _, _ in axes):
        raise argparse.ArgumentTypeError(f"{text!r} should be such as data=32,fsdp=8,tensor=1")
    return [f"--config.mesh.{name}={size}" for name, _, size in axes]


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit status 2."""
    parser = command_line.Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # or --config.x would be an abbreviation
    )
    add = parser.add_argument
    add("--config", required=True, help="configs/NAME.py; with --config.key=value ...")
    add("--topology", required=True, help=topology.FORMS)
    add("--mesh", type=mesh_changes, default=[], help="data=32,fsdp=8 replaces the config's mesh")
    add("--examples", type=int, help="training examples, if the data are not on this machine")
    add("--json", type=files.writable, metavar="FILE", help="file to write the plan to as well")
    with errors.exits():
        args, changes = parser.parse_known_args(argv)
        config = command_line.configured(args.config, args.mesh + changes, rules=rules.RULES)
        console.install()
        plan = estimate.estimate(config, args.topology, args.examples)
        print(report.text(plan))
        if args.json:
            files.write_json(args.json, plan)


if __name__ == "__main__":
    main()
