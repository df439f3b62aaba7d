"""The reward of a turn: terms (``term``), and their weighted sum (``weighted``).

``toxicity`` and ``naturalness`` are what every reward of an ``ASTSystem`` has.
"""
