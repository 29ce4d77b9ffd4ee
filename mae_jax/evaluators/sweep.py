"""The best frozen feature, chosen only on training examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mae_jax.evaluators import features, knn
from mae_jax.evaluators.evaluator import Context, Evaluator, Result
from mae_jax.evaluators.feature_accuracy import check_labels
from mae_jax.evaluators.features import Feature

K = 20  # neighbours


class Sweep(Evaluator):
    """The kNN metric of every block, pooling and norm, standardised or not.

    A fifth of the training examples, drawn by `seed`, is classified by the rest.
    """

    def __init__(self, section: Mapping[str, Any], context: Context):
        super().__init__(section, context)
        kind = check_labels(section, context)
        self.scorer = knn.SCORERS[kind](dict(k=K), context)
        self.source = context.open(section["train"])

    def evaluate(self, variables: dict) -> Result:
        scores = self.scores(variables)
        count = min(len(self.source), self.section["examples"] or len(self.source))
        chosen = max(scores, key=lambda pair: scores[pair])
        title = f"{self.scorer.titles[0]} on a held-out fifth of the training examples"
        rows = [[title, "standardised", "as it is"]]
        for feature in dict.fromkeys(feature for feature, _ in scores):
            pairs = ((feature, True), (feature, False))
            cells = [f"{'*' if pair == chosen else ''}{scores[pair]:.3f}" for pair in pairs]
            rows.append([f"  {feature}", *cells])
        results = [
            feature._asdict() | {"standardize": standard, "knn_train": score}
            for (feature, standard), score in scores.items()
        ]
        best = chosen[0]._asdict() | {"standardize": chosen[1]}
        return Result(
            {"knn_train": scores[chosen]},
            rows=rows,
            notes=(f"* chosen, on {count:,} training examples alone",),
            details={"sweep": results, "chosen": best},
        )

    def scores(self, variables: dict) -> dict[tuple[Feature, bool], float]:
        """Return the first metric of each feature, standardised or not, by ascending block."""
        scores = {}
        for norm in [True, False] if "norm" in variables["params"]["encoder"] else [False]:
            # One pass extracts all blocks, which are in memory at once.
            blocks = range(self.model.depth)
            poolings = ("mean", "cls") if self.model.cls_tokens else ("mean",)
            wanted = [Feature(i, pooling, norm) for i in blocks for pooling in poolings]
            extract = features.Extractor(self.model, wanted, self.context.transform, self.mesh)
            sizes = self.section["examples"], self.section["batch_size"]
            table, labels = extract(variables, self.source, *sizes).labelled()
            order = np.random.default_rng(self.section["seed"]).permutation(len(labels))
            test, train = np.split(order, [max(1, len(order) // 5)])
            if not len(train):
                raise ValueError("a sweep needs at least two labelled training examples")
            for block in blocks:
                pooled = {name: table.pop(Feature(block, name, norm)) for name in poolings}
                if "cls" in pooled:
                    pooled["both"] = np.concatenate([pooled["cls"], pooled["mean"]], axis=1)
                for pooling, x in pooled.items():
                    for standard in (True, False):
                        parts = x[train], x[test]
                        a, b = features.standardize(*parts) if standard else parts
                        metrics, _ = self.scorer(a, labels[train], b, labels[test])
                        scores[Feature(block, pooling, norm), standard] = [*metrics.values()][0]
        return dict(sorted(scores.items(), key=lambda item: item[0][0].block))
