"""A plain training loop and what it is given: data, task, engine, callbacks, history.

Nothing here knows of compression.
Start at `loop`, one epoch and one score; `task` says what is learned.
"""
