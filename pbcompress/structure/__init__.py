"""Which channels of a network belong together, found by one pass that follows labels.

It says what may be narrowed, and never how far or which channel goes.
Start at `channel_groups`; `rules` has a rule for each operation, from `compute_rules`,
`attention_rules`, `constant_rules`, `shape_rules`, `spectral_rules` and `weight_rules`.
"""
