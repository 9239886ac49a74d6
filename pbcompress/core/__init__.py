"""Models handled with care: inputs, modules, random state, files, source lines.

Nothing here knows of widths, dendrites or ONNX.
Start at `modules`, the few operations on a network that everything else is made of.
"""
