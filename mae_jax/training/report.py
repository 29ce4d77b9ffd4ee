"""The end of a run: the evaluation of its last step, the final tables and the pictures."""

import logging
from collections.abc import Callable

from mae_jax import evaluators
from mae_jax.evaluators import visualize
from mae_jax.training import metric_writer
from mae_jax.training.trainer import Trainer

_log = logging.getLogger(__name__)


def write(trainer: Trainer, untrained: Callable[[], dict]) -> None:
    """Evaluate the last step, record its metrics, and write `report.txt` and the pictures.

    Args:
      untrained: makes the variables of an untrained model, a baseline of the evaluations.
    """
    entries, writer, run = trainer.evaluations, trainer.writer, trainer.run
    baseline = untrained() if entries else None
    results = []
    for entry in trainer.watched(entries):
        try:
            results.append(entry.report(trainer.state.best, baseline))
        except ValueError as error:  # the data of this entry: a trained run has a report anyway
            _log.warning("evaluators.%s is left out of the report: %s", entry.name, error)
    result = evaluators.join(results)
    if result.metrics and not writer.is_evaluated(trainer.total):
        writer.write(trainer.total, result.metrics)
    for name, picture in result.pictures.items():
        writer.picture(f"{name}.png", picture)
    if writer.primary:
        records = [metric_writer.parsed(line) for line in writer.lines]
        curves = {name: metric_writer.series(records, name) for name in ("loss", "test_loss")}
        writer.picture("loss.png", visualize.curve(curves, run.path.name, "loss"))
    text = result.text or "no evaluation: the config has no evaluators"
    writer.text(run.report.name, text + "\n")
    writer.upload()
    trainer.progress.close()
    _log.info("\n%s\n\nlook at the pictures in %s", text, run.path / "pictures")
