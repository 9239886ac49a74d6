"""Every choice as a frozen value: keyword-only, checked at once, always JSON.

No tensors, and no code that carries a choice out. Start at whole.py, which has one part for each of
widths.py, dendrites.py and recovery.py.
"""
