"""The reactions of a run to bad updates and failed saves."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from typing import Any

from mae_jax.config.errors import UserError
from mae_jax.training import metric_writer
from mae_jax.training.run_directory import RunDirectory


class Diverged(Exception):
    """Training that cannot go on from its state; the arguments are the step and its metrics."""


@dataclasses.dataclass
class Recovery:
    """The counts of bad updates, rewinds and failed saves, which decide when a run ends."""

    limits: Any  # the section `recovery` of a config
    run: RunDirectory
    writer: metric_writer.MetricWriter
    example_names: Callable[[int], list[str]]  # position of a batch -> names of its examples
    passed: int = 0  # batches that rewinds left out
    bad_updates: int = 0  # number in a row
    rewinds: int = 0  # number since the last good save
    rewound_to: int | None = None
    last_good: dict[str, float] = dataclasses.field(default_factory=dict)  # of the last good update

    def resume(self, step: int, metadata: dict[str, Any]) -> None:
        """Restore the counts saved with the checkpoint of `step`, or by a later rewind to it."""
        rewind = self.run.stored_rewind()
        if rewind.get("step") == step:
            metadata, self.rewound_to = rewind, step
        self.passed = metadata.get("passed", 0)
        self.bad_updates = metadata.get("skipped", 0)
        self.rewinds = metadata.get("rewinds", 0)

    def metadata(self) -> dict[str, int]:
        """Return the counts to save with a checkpoint; a good save ends the count of rewinds."""
        rewinds = self.rewinds if self.bad_updates else 0
        return {"passed": self.passed, "skipped": self.bad_updates, "rewinds": rewinds}

    def good_update(self, metrics: dict[str, float]) -> None:
        self.bad_updates, self.last_good = 0, metrics

    def bad_update(self, step: int, metrics: dict[str, Any]) -> None:
        """Record a bad update; raise Diverged if there were too many in a row."""
        self.bad_updates += 1
        text = f"loss {metrics['loss']:.4g}, gradient norm {metrics['gradient_norm']:.4g}"
        if self.limits.max_skipped_updates:
            self.writer.event(step, "skipped", f"{text}: this update is left out")
        else:
            self.writer.event(step, "bad_update", f"{text}: this update is bad")
        if self.bad_updates > self.limits.max_skipped_updates:
            raise Diverged(step, metrics)

    def saved(self) -> None:
        self.rewinds = self.metadata()["rewinds"]

    def failed_save(self, step: int, error: OSError, failures: int) -> None:
        """Record a failed save; raise UserError if there were too many in a row."""
        text = f"a checkpoint could not be saved ({error})"
        self.writer.event(step, "save_failed", text, failed_saves=failures)
        if failures >= self.limits.max_failed_saves:
            raise UserError(
                f"{text}, {failures} in a row: free some space or fix the cause, and the same "
                "command continues from the last checkpoint"
            ) from error

    def rewind_target(self, step: int, metrics: dict[str, Any]) -> int:
        """Return the step to rewind to; raise UserError if there were too many rewinds."""
        if self.rewinds >= self.limits.max_rewinds:
            raise UserError(self._report(step, metrics))
        self.rewinds += 1
        target = step - max(1, self.bad_updates)
        if target == self.rewound_to:  # the last rewind led to no good update
            target -= 1
        return target

    def rewound(self, step: int, target: int) -> None:
        """Record that training goes on from `target` with the batches after that of `step`."""
        self.passed += step - target
        self.bad_updates, self.rewound_to = 0, target
        text = f"back to step {target}, past the batches since"
        self.writer.event(step, "rewound", text, rewound_to=target)
        self.writer.drop(target)
        with contextlib.suppress(OSError):  # a killed run then meets the bad batches again
            self.run.store_rewind({"step": target, "passed": self.passed, "rewinds": self.rewinds})

    def _report(self, step: int, metrics: dict[str, Any]) -> str:
        """Write `diverged.json`, and return its essence with advice."""
        examples = self.example_names(step - 1 + self.passed)
        path, last_loss = self.run.path / "diverged.json", self.last_good.get("loss")
        report = {"step": step, **metrics, "loss_before": last_loss, "examples": examples}
        with contextlib.suppress(OSError):  # the message has the essence in any case
            self.writer.text(path.name, json.dumps(metric_writer.finite(report), indent=2) + "\n")
        norms = metrics.get("gradient_norms", {})
        norms_text = ", ".join(f"{part} {norm:.3g}" for part, norm in norms.items())
        self.writer.event(step, "stopped", f"it diverged, after {self.rewinds} rewinds")
        return (
            f"step {step} diverged, after {self.rewinds} rewind(s): loss {metrics.get('loss')}, "
            f"the last good loss was {last_loss}, "
            f"learning rate {metrics.get('learning_rate', 0):.3g}, "
            f"{metrics.get('not_finite') or f'gradient norms {norms_text}'}; the batch: "
            f"{', '.join(examples[:8])} ... (all of it in {path}). Nothing of it was saved. Try a "
            "lower optimizer.base_learning_rate, a longer optimizer.warmup_epochs, "
            "optimizer.clip=1.0 or model.dtype=float32, in a new work directory"
        )
