"""The reward of a turn: a weighted sum of terms.

``term`` defines a term, ``weighted`` adds terms up, ``configured`` builds those of a configuration. Toxicity and
naturalness (``terms``) are in every reward of an ``ASTSystem``; length and repetition (``terms``), ``self_bleu`` and
``embedding`` if they are configured.
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
