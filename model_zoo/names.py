"""Sort names as people do, and answer a wrong name helpfully."""

import difflib
import re
from collections.abc import Iterable

__all__ = ["natural_sorted", "unknown_name_error"]


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Sort ``names`` with runs of digits compared as numbers.

    Example:
        >>> natural_sorted(["resnet56", "resnet110", "mlp", "resnet20"])
        ['mlp', 'resnet20', 'resnet56', 'resnet110']
    """
    # Splitting on a captured group puts text at even and digits at odd places, so that the
    # keys of any two names compare like with like.
    return sorted(
        names,
        key=lambda name: [
            int(part) if place % 2 else part
            for place, part in enumerate(re.split(r"([0-9]+)", name))
        ],
    )


def unknown_name_error(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """Build the error for a name that is not among the ``known`` ones.

    Args:
        kind: What the name stands for, e.g. ``"model"``.
        name: The name that was asked for.
        known: All names that exist.

    Returns:
        An error, to be raised by the caller, that says what was asked, what exists and, where
        one is near, the closest match.

    Example:
        >>> print(unknown_name_error("model", "resnet21", ["mlp", "resnet20"]))
        unknown model 'resnet21'; did you mean 'resnet20'? Available: mlp, resnet20
    """
    names = natural_sorted(known)
    closest = difflib.get_close_matches(name, names, n=1)
    hint = f" did you mean '{closest[0]}'?" if closest else ""
    return ValueError(f"unknown {kind} '{name}';{hint} Available: {', '.join(names) or 'none'}")
