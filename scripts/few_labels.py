"""Accuracy over the number of labels: fine-tuning a pre-trained encoder, and training from scratch.

    python scripts/few_labels.py --checkpoint=runs/fashion_mnist --workdir=runs/few_labels

Each run has the same number of steps and the same recipe, but that from scratch there is no
layer-wise learning-rate decay, which would only hold it back, and another learning rate. Writes
`few_labels.json` and `few_labels.png` to the work directory; a run that is finished there is not
repeated.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from mae_jax.config import command_line
from mae_jax.evaluators import visualize
from mae_jax.output import tables
from mae_jax.train import train
from mae_jax.training import metric_writer

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--config", default=f"{ROOT}/configs/finetune_fashion_mnist.py")
    parser.add_argument("--labels", default="600,6000,60000")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--scratch-learning-rate", type=float, default=2e-3)
    options, others = parser.parse_known_args()  # others are --config.key=value

    rows: dict[str, dict[int, float]] = {"pre-trained": {}, "from scratch": {}}
    workdir = Path(options.workdir)
    for labels in map(int, options.labels.split(",")):
        for kind, found in rows.items():
            changes = {"init.checkpoint": options.checkpoint}
            if kind == "from scratch":
                changes = {
                    "optimizer.layer_decay": 1.0,
                    "optimizer.base_learning_rate": options.scratch_learning_rate,
                }
            place = workdir / f"{kind.replace(' ', '_')}_{labels}"
            changes |= {"data.examples": labels, "evaluate.every": 0}
            arguments = [f"--config.{name}={x}" for name, x in changes.items()]
            spec = [f"--config={options.config}", f"--workdir={place}", *others, *arguments]
            config, _ = command_line.parse(spec)
            batch_size: Any = config.batch_size
            per_epoch = max(1, labels // batch_size)
            epochs = options.steps / per_epoch
            warmup = f"--config.optimizer.warmup_epochs={epochs / 10}"
            config, _ = command_line.parse([*spec, f"--config.epochs={epochs}", warmup])
            train(config, place)
            found[labels] = metric_writer.read(place)[-1]["test_accuracy"]
            print(f"{labels} labels, {kind}: {found[labels]:.4f}", flush=True)

    (workdir / "few_labels.json").write_text(json.dumps(rows, indent=2) + "\n")
    lines = {name: (list(found), list(found.values())) for name, found in rows.items()}
    title = f"fine-tuning, {options.steps} steps"
    visualize.curve(lines, title, "test accuracy", "labels", logarithmic=True).save(
        workdir / "few_labels.png"
    )
    names = [f"{labels:,} labels" for labels in rows["pre-trained"]]
    table = [["test accuracy", *names]]
    table += [[name, *(f"{x:.4f}" for x in found.values())] for name, found in rows.items()]
    print("\n" + tables.table(table))


if __name__ == "__main__":
    main()
