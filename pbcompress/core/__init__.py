"""What every other folder stands on: inputs, modules, random state, values, files, tables, drawing.

It decides nothing about widths, dendrites or exports.
Start at `inputs` and `modules`, the few operations on a network that the rest is made of.
"""
