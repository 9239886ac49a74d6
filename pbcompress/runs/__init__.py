"""A finished run as a folder: weights, plan, sample, deployment, and what its files say.

It keeps what was measured and computes no word of the report.
Start at `run_state`.
"""
