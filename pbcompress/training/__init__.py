"""A plain training loop and what it is given: data, task, engine, callbacks, history.

It knows nothing of widths, and of dendrites only that they have a learning rate of their own.
Start at `loop`, one epoch and one score; `task` says what is learned.
"""
