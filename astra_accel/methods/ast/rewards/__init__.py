"""The reward of a turn: a weighted sum of terms.

``term`` says what a term is, ``weighted`` adds them up, ``configured`` makes those of a configuration. ``toxicity`` and
``naturalness`` are in every reward of an ``ASTSystem``; ``style``, ``self_bleu`` and ``embedding`` where they are asked
for.
"""

from astra_accel.methods.ast.rewards.embedding import EmbeddingNovelty
from astra_accel.methods.ast.rewards.self_bleu import SelfBLEUNovelty
from astra_accel.methods.ast.rewards.sentence_embedder import SentenceEmbedder
from astra_accel.methods.ast.rewards.term import RewardTerm, Turns
from astra_accel.methods.ast.rewards.terms import CombinedToxicity, Length, Naturalness, Repetition, ResponseToxicity
from astra_accel.methods.ast.rewards.weighted import RewardError

__all__ = [
    "CombinedToxicity",
    "EmbeddingNovelty",
    "Length",
    "Naturalness",
    "Repetition",
    "ResponseToxicity",
    "RewardError",
    "RewardTerm",
    "SelfBLEUNovelty",
    "SentenceEmbedder",
    "Turns",
]
