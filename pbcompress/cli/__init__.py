"""The command line: a command reads its arguments, calls public functions, prints what they return.

It makes no choice that Python users do not have.
Start at `main`.
"""
