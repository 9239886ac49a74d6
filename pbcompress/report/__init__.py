"""The report of a run: page, charts, tables, made from its facts and history alone.

Nothing here touches a network.
Start at `writing`; `page` finds the words, and `page.html.jinja` lays them out.
"""
