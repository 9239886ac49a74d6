"""Where the width goes: importance, allocation, budgets, and the plan that comes of them.

A plan is data; `pruning` carries it out.
Start at `planner`; a criterion of importance belongs in `importance`, a bound in `width_search`,
or in `measured_budget` if it must be measured.
"""
