"""A run as a folder to give away: files, runners, model card, checksums.

It trains and exports nothing itself.
Start at `folder`; `shipped/` holds what is given away and imports nothing of pbcompress.
"""
