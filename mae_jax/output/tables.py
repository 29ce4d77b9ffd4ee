"""Tables and amounts as text."""

import datetime


def duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


def table(rows: list[list[str]]) -> str:
    """Return aligned columns of text: the first one to the left, the others to the right."""
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    line = "  ".join([f"{{:{first}}}", *(f"{{:>{width}}}" for width in widths)])
    return "\n".join(line.format(*row).rstrip() for row in rows)


def listed(metrics: dict[str, float]) -> str:
    """Return metrics on one line: `test_loss 0.4123  knn 0.8710`."""
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def amount(value: float | None, unit: str = "B") -> str:
    """Return `19.1 GFLOP`: at least three digits, with the prefix that fits."""
    if value is None:
        return "unknown"
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            value /= scale
            decimals = max(0, 3 - len(str(int(value))))
            return f"{value:.{decimals}f} {prefix}{unit}"
    return f"{value:.0f} {unit}"
