"""Accuracy over the number of labels: fine-tuning a pre-trained encoder, and training from scratch.

    python -m scripts.experiments.few_labels --checkpoint=runs/fashion_mnist \\
        --workdir=runs/few_labels

All runs have the same number of steps and the same recipe. From scratch there is no layer-wise
learning-rate decay, which would only hold training back, and another learning rate. It writes
`few_labels.json` and `few_labels.png`; a run that is finished there is not repeated.
"""

import argparse
from pathlib import Path

from mae_jax.config import command_line
from mae_jax.evaluators import visualize
from mae_jax.output import files, tables
from scripts.experiments import runs


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--config", default="configs/finetune_fashion_mnist.py")
    parser.add_argument("--labels", default="600,6000,60000")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--scratch-learning-rate", type=float, default=2e-3)
    options, others = parser.parse_known_args()  # others are --config.key=value
    scratch = {"layer_decay": 1.0, "base_learning_rate": options.scratch_learning_rate}
    kinds = {
        "pre-trained": [f"--config.init.checkpoint={options.checkpoint}"],
        "from scratch": [f"--config.optimizer.{name}={x}" for name, x in scratch.items()],
    }
    workdir, batch_size = (
        Path(options.workdir),
        command_line.configured(options.config, others).batch_size,
    )
    rows: dict[str, dict[int, float]] = {kind: {} for kind in kinds}
    for labels in map(int, options.labels.split(",")):
        epochs = options.steps / max(1, labels // batch_size)
        shared = [f"--config.data.examples={labels}", f"--config.epochs={epochs}"]
        shared.append(f"--config.optimizer.warmup_epochs={epochs / 10}")
        for kind, changes in kinds.items():
            arguments = [f"--config={options.config}", *others, *shared, *changes]
            last = runs.last_record(arguments, workdir / f"{kind.replace(' ', '_')}_{labels}")
            rows[kind][labels] = last["test_accuracy"]
            print(f"{labels} labels, {kind}: {last['test_accuracy']:.4f}", flush=True)
    files.write_json(str(workdir / "few_labels.json"), rows)
    lines = {kind: (list(row), list(row.values())) for kind, row in rows.items()}
    title = f"fine-tuning, {options.steps} steps"
    picture = visualize.curve(lines, title, "test accuracy", "labels", logarithmic=True)
    picture.save(workdir / "few_labels.png")
    table = [["", *(f"{labels:,} labels" for labels in rows["pre-trained"])]]
    table += [[kind, *(f"{x:.4f}" for x in row.values())] for kind, row in rows.items()]
    print("\n" + tables.table(table))


if __name__ == "__main__":
    main()
