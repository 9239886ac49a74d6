"""Growth and progress in the loops and tools of other libraries.

Each module needs the library that it is named after, and nothing else of pbcompress needs it.
Start at the module of your library; a loop of your own needs none, see `pbcompress.cycles`.
"""
