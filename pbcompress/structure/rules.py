"""The rules of all operations that are known, in one table."""

from collections.abc import Mapping

from pbcompress.structure import (
    attention_rules,
    compute_rules,
    constant_rules,
    index_rules,
    shape_rules,
    spectral_rules,
    weight_rules,
)
from pbcompress.structure.rule_table import Rule

__all__ = ["RULES"]

RULES: Mapping[str, Rule] = {
    **compute_rules.RULES,
    **attention_rules.RULES,
    **index_rules.RULES,
    **shape_rules.RULES,
    **constant_rules.RULES,
    **spectral_rules.RULES,
    **weight_rules.RULES,
}
