"""Print the commands that README.md promises, one a line: what CI runs is what a stranger types."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def section(title: str) -> str:
    """Return what README says under the heading `title`."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README.read_text(), re.M | re.S)
    if not found:
        raise SystemExit(f"README.md has no section {title!r}")
    return found[1]


def commands() -> list[str]:
    """Return the commands of the section "Two commands": each is an indented line."""
    found = re.findall(r"^    (\S.*)$", section("Two commands"), re.M)
    if len(found) != 2:
        raise SystemExit(f"README.md should have two commands, not {len(found)}: {found}")
    return found


def python() -> str:
    """Return README's first block of Python."""
    found = re.search(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    if not found:
        raise SystemExit("README.md has no block of Python")
    return found[1]


if __name__ == "__main__":
    print("\n".join(commands()))
