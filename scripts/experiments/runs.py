"""What experiments of several runs share."""

from pathlib import Path
from typing import Any

from mae_jax.config import command_line
from mae_jax.train import train
from mae_jax.training import metric_writer


def last_record(arguments: list[str], workdir: Path) -> dict[str, Any]:
    """Train to the end, with all evaluations there alone; return the last record of the run."""
    spec = [f"--workdir={workdir}", *arguments]
    names = command_line.parse(spec)[0]["evaluators"]
    at_the_end = [f"--config.evaluators.{name}.every=0" for name in names]
    config, _ = command_line.parse([*spec, *at_the_end])
    train(config, workdir)
    return metric_writer.read(workdir)[-1]
