"""How a run goes and what it leaves: the checked job, the networks that compete, the folder.

It lays out no report; `report` does.
Start at `job` for a run that begins, and at `run_folder` for one that is over.
"""
