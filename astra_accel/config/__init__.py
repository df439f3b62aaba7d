"""Every configuration: its fields, from a file and a command line. No torch here."""

from __future__ import annotations

from astra_accel.config.endpoints import BudgetConfiguration, PriceConfiguration, TargetConfiguration
from astra_accel.config.fields import section_of
from astra_accel.config.models import ComputeConfiguration, LoRAConfiguration, ModelConfiguration, Quantization
from astra_accel.config.rollout import (
    AlgorithmConfiguration,
    EvaluationConfiguration,
    FewShotConfiguration,
    NaturalnessModel,
    PromptsConfiguration,
    PromptSource,
    RewardConfiguration,
    RolloutConfiguration,
    SamplingConfiguration,
    ScorerConfiguration,
)
from astra_accel.config.run import RunConfiguration
from astra_accel.config.section import Named, Section
from astra_accel.config.training import (
    AUTO,
    NO_WARMUP,
    Bound,
    CurriculumConfiguration,
    Optimizer,
    ReplayConfiguration,
    Scheduler,
    TrainingConfiguration,
    check_repository,
    check_resume,
)

__all__ = [
    "AUTO",
    "NO_WARMUP",
    "AlgorithmConfiguration",
    "Bound",
    "BudgetConfiguration",
    "ComputeConfiguration",
    "CurriculumConfiguration",
    "EvaluationConfiguration",
    "FewShotConfiguration",
    "LoRAConfiguration",
    "ModelConfiguration",
    "Named",
    "NaturalnessModel",
    "Optimizer",
    "PriceConfiguration",
    "PromptSource",
    "PromptsConfiguration",
    "Quantization",
    "ReplayConfiguration",
    "RewardConfiguration",
    "RolloutConfiguration",
    "RunConfiguration",
    "SamplingConfiguration",
    "Scheduler",
    "ScorerConfiguration",
    "Section",
    "TargetConfiguration",
    "TrainingConfiguration",
    "check_repository",
    "check_resume",
    "section_of",
]
