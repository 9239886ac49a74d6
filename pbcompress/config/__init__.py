"""Every choice as a frozen value: keyword-only, checked at once, always JSON.

No tensors, and no code that carries a choice out. Start at whole.py: its parts are beside it.
"""
