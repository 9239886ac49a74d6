"""Growth in the training loops of other libraries; each module needs the library it is named after.

A loop of your own needs none of them: see `pbcompress.cycles`.
"""
