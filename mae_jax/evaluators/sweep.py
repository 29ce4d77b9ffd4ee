"""The best frozen feature, chosen on training examples alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mae_jax.evaluators import features, knn
from mae_jax.evaluators.evaluator import Context, Evaluator, Result
from mae_jax.evaluators.feature_accuracy import check_classes
from mae_jax.evaluators.features import Feature

K = 20  # neighbours


class Sweep(Evaluator):
    """kNN accuracy of every block, pooling and norm, standardised or not.

    A fifth of the training examples, drawn by `seed`, is classified by the others.
    """

    def __init__(self, section: Mapping[str, Any], context: Context):
        super().__init__(section, context)
        check_classes(section, context)
        self.source = context.open(section["train"])

    def evaluate(self, variables: dict) -> Result:
        scores = self.scores(variables)
        count = min(len(self.source), self.section["examples"] or len(self.source))
        chosen = max(scores, key=lambda x: scores[x])
        title = "kNN on a held-out fifth of the training examples"
        rows = [[title, "standardised", "as it is"]]
        for feature in dict.fromkeys(feature for feature, _ in scores):
            cells = {x: f"{scores[x]:.3f}" for x in ((feature, True), (feature, False))}
            rows.append([f"  {feature}", *("*" * (x == chosen) + cells[x] for x in cells)])
        each = [
            feature._asdict() | {"standardize": standard, "knn_train": x}
            for (feature, standard), x in scores.items()
        ]
        best = chosen[0]._asdict() | {"standardize": chosen[1]}
        return Result(
            {"knn_train": scores[chosen]},
            rows=rows,
            notes=(f"* chosen, on {count:,} training examples alone",),
            details={"sweep": each, "chosen": best},
        )

    def scores(self, variables: dict) -> dict[tuple[Feature, bool], float]:
        """The accuracy of each feature, standardised or not, by ascending block."""
        scores = {}
        for norm in [True, False] if "norm" in variables["params"]["encoder"] else [False]:
            # All blocks are extracted in one pass, and held in memory at once.
            blocks = range(self.model.depth)
            wanted = [Feature(x, pooling, norm) for x in blocks for pooling in ("mean", "cls")]
            extract = features.Extractor(self.model, wanted, self.context.transform, self.mesh)
            sizes = self.section["examples"], self.section["batch_size"]
            table, labels = extract(variables, self.source, *sizes).labelled()
            order = np.random.default_rng(self.section["seed"]).permutation(len(labels))
            held, kept = np.split(order, [max(1, len(order) // 5)])
            if not len(kept):
                raise ValueError("a sweep needs at least two labelled training examples")
            for block in blocks:
                mean, cls = (table.pop(Feature(block, name, norm)) for name in ("mean", "cls"))
                both = np.concatenate([cls, mean], axis=1)
                for pooling, x in (("mean", mean), ("cls", cls), ("both", both)):
                    for standard in (True, False):
                        parts = x[kept], x[held]
                        a, b = features.standardize(*parts) if standard else parts
                        found = knn.accuracies(a, labels[kept], b, labels[held], ks=[K])
                        scores[Feature(block, pooling, norm), standard] = found[K]
        return dict(sorted(scores.items(), key=lambda item: item[0][0].block))
