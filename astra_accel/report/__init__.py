"""A report on one or more runs: a self-contained HTML file, and a summary in Markdown.

Follow the data through the files: ``collect`` (what runs wrote), ``conversations`` (which of them the page shows),
``plots`` and ``svg`` (its charts), ``page`` (the HTML, with ``templates/``), ``markdown``.
"""
