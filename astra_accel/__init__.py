"""Distributed training of red-teaming language models on Hugging Face Accelerate.

A *tester* language model learns to write probes that bring out unsafe responses of a *target*, so that the failures
are found before users find them. Importing this package is light: each name loads what it needs when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from astra_accel.algorithms.contrastive import CTB
    from astra_accel.algorithms.dpo import DPO, IPO
    from astra_accel.algorithms.grpo import GRPO, RLOO
    from astra_accel.algorithms.mle import MLE
    from astra_accel.algorithms.ppo import PPO
    from astra_accel.algorithms.trajectory_balance import TB
    from astra_accel.config import RunConfiguration, TrainingConfiguration
    from astra_accel.core.algorithm import Algorithm
    from astra_accel.core.evaluator import Evaluator
    from astra_accel.core.prompt import Goal, Prompt
    from astra_accel.core.sampler import Graph, Node, Sampler
    from astra_accel.core.scorer import Scorer, Turn
    from astra_accel.core.system import System, ValueFunctionSystem
    from astra_accel.errors import Preempted
    from astra_accel.evaluation.evaluator import ASTEvaluator
    from astra_accel.experience.collect import Harness
    from astra_accel.methods.ast.hf_system import HFASTSystem
    from astra_accel.methods.ast.sampler import ASTSampler
    from astra_accel.methods.ast.system import ASTSystem
    from astra_accel.methods.ast.value_system import HFASTValueFunctionSystem
    from astra_accel.scorers.classifier import ClassifierScorer
    from astra_accel.scorers.detoxify import DetoxifyScorer
    from astra_accel.scorers.endpoint.judge import JudgeScorer
    from astra_accel.scorers.endpoint.llama_guard import LlamaGuardEndpointScorer
    from astra_accel.scorers.endpoint.moderation import ModerationScorer
    from astra_accel.scorers.hatesonar import HateSonarScorer
    from astra_accel.scorers.llama_guard import LlamaGuardScorer
    from astra_accel.scorers.profanity import ProfanityScorer
    from astra_accel.scorers.refusal import RefusalScorer
    from astra_accel.scorers.rubric.local import LocalJudgeScorer
    from astra_accel.scorers.yes_no import YesNoScorer
    from astra_accel.training.callbacks.base import TrainerCallback, TrainerControl
    from astra_accel.training.callbacks.early_stopping import EarlyStopping
    from astra_accel.training.trainer import AccelTrainer, Trainer

__version__ = "0.1.0"

_MODULES = {
    "ASTEvaluator": "evaluation.evaluator",
    "ASTSampler": "methods.ast.sampler",
    "ASTSystem": "methods.ast.system",
    "AccelTrainer": "training.trainer",
    "Algorithm": "core.algorithm",
    "CTB": "algorithms.contrastive",
    "ClassifierScorer": "scorers.classifier",
    "DPO": "algorithms.dpo",
    "DetoxifyScorer": "scorers.detoxify",
    "EarlyStopping": "training.callbacks.early_stopping",
    "Evaluator": "core.evaluator",
    "GRPO": "algorithms.grpo",
    "Goal": "core.prompt",
    "Graph": "core.sampler",
    "HFASTSystem": "methods.ast.hf_system",
    "HFASTValueFunctionSystem": "methods.ast.value_system",
    "Harness": "experience.collect",
    "HateSonarScorer": "scorers.hatesonar",
    "IPO": "algorithms.dpo",
    "JudgeScorer": "scorers.endpoint.judge",
    "LlamaGuardEndpointScorer": "scorers.endpoint.llama_guard",
    "LlamaGuardScorer": "scorers.llama_guard",
    "LocalJudgeScorer": "scorers.rubric.local",
    "MLE": "algorithms.mle",
    "ModerationScorer": "scorers.endpoint.moderation",
    "Node": "core.sampler",
    "PPO": "algorithms.ppo",
    "Preempted": "errors",
    "ProfanityScorer": "scorers.profanity",
    "Prompt": "core.prompt",
    "RLOO": "algorithms.grpo",
    "RefusalScorer": "scorers.refusal",
    "RunConfiguration": "config",
    "Sampler": "core.sampler",
    "Scorer": "core.scorer",
    "System": "core.system",
    "TB": "algorithms.trajectory_balance",
    "Trainer": "training.trainer",
    "TrainerCallback": "training.callbacks.base",
    "TrainerControl": "training.callbacks.base",
    "TrainingConfiguration": "config",
    "Turn": "core.scorer",
    "ValueFunctionSystem": "core.system",
    "YesNoScorer": "scorers.yes_no",
}

__all__ = [*_MODULES, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
