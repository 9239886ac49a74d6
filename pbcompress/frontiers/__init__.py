"""One network at several targets: what each of them costs and scores, and which is small enough.

Every target is a call of `compress` with a folder of its own; nothing is trained here otherwise.
Start at `sweep` for how it goes, and at `points` for what it gives.
"""
