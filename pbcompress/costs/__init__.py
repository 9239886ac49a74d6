"""What a network costs in parameters, FLOPs and time: measured, and in closed form in its widths.

Nothing here decides a width.
Start at `measured`; `closed_form` and `latency_model` predict what it would measure.
"""
