"""A report of one run or several: one HTML file without anything from elsewhere, and a summary in Markdown.

Follow the data through the files: ``collect`` (what runs wrote), ``conversations`` (which of them the page shows),
``plots`` and ``svg`` (its pictures), ``page`` (the HTML, with ``templates/``), ``markdown``.
"""
