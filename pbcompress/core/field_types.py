"""Types of configuration fields: the range of a number for the check, and in words for messages.

The only module that imports annotated_types.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Interval, Len

__all__ = [
    "Count",
    "NonNegative",
    "Numbers",
    "Positive",
    "PositiveShare",
    "ProperShare",
    "Share",
    "ShareBelowHalf",
    "ShareBelowOne",
    "WholeNumber",
]

Count = Annotated[int, Ge(1), "a whole number from 1"]
WholeNumber = Annotated[int, Ge(0), "a whole number from 0"]
Positive = Annotated[float, Gt(0), "above 0"]
NonNegative = Annotated[float, Ge(0), "zero or positive"]
Share = Annotated[float, Interval(ge=0, le=1), "a number from 0 to 1"]
PositiveShare = Annotated[float, Interval(gt=0, le=1), "above 0 and at most 1"]
ProperShare = Annotated[float, Interval(gt=0, lt=1), "between 0 and 1"]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1), "at least 0 and below 1"]
ShareBelowHalf = Annotated[float, Interval(gt=0, lt=0.5), "above 0 and below 0.5"]
Numbers = Annotated[tuple[float, ...], Len(1), "at least one number"]
