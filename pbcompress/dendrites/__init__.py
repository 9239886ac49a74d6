"""The layer that grows dendrites: forms, nodes, signals, and the objective of their training.

It knows neither epochs nor schedules; those are in `recovery`.
Start at `layer`; a new form belongs in `forms`.
"""
