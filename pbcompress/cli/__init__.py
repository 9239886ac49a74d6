"""The command line: each command calls one public function and prints what it returns.

No decision is made here.
Start at `main`.
"""
