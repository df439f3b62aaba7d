"""Algorithms and scorers by the names that a configuration gives them, each as "module:Class"."""

from __future__ import annotations

ALGORITHMS: dict[str, str] = {
    "dpo": "astra_accel.algorithms.dpo:DPO",
    "ipo": "astra_accel.algorithms.dpo:IPO",
    "ctb": "astra_accel.algorithms.contrastive:CTB",
    "tb": "astra_accel.algorithms.trajectory_balance:TB",
    "mle": "astra_accel.algorithms.mle:MLE",
    "grpo": "astra_accel.algorithms.grpo:GRPO",
    "rloo": "astra_accel.algorithms.grpo:RLOO",
    "ppo": "astra_accel.algorithms.ppo:PPO",
}

SCORERS: dict[str, str] = {
    "profanity": "astra_accel.scorers.profanity:ProfanityScorer",
    "hatesonar": "astra_accel.scorers.hatesonar:HateSonarScorer",
    "detoxify": "astra_accel.scorers.detoxify:DetoxifyScorer",
    "llama_guard": "astra_accel.scorers.llama_guard:LlamaGuardScorer",
    "refusal": "astra_accel.scorers.refusal:RefusalScorer",
    "classifier": "astra_accel.scorers.classifier:ClassifierScorer",
    "yes_no": "astra_accel.scorers.yes_no:YesNoScorer",
    "local_judge": "astra_accel.scorers.rubric.local:LocalJudgeScorer",
    "judge": "astra_accel.scorers.endpoint.judge:JudgeScorer",
    "llama_guard_endpoint": "astra_accel.scorers.endpoint.llama_guard:LlamaGuardEndpointScorer",
    "moderation": "astra_accel.scorers.endpoint.moderation:ModerationScorer",
}

ENDPOINT_SCORERS = ("judge", "llama_guard_endpoint", "moderation")
"""The scorers that ask an endpoint, so that a budget counts their questions, and they need the extra of that name."""
