"""Adaptive stress testing (ASTPrompter, https://arxiv.org/abs/2407.09447).

To follow a conversation, read in this order: ``transcript`` (the data), ``format`` and ``views`` (what a model reads of
it), ``system`` (the reward) and ``hf_system`` (with transformers models), ``sampler`` (the tree).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astra_accel.lazy import load_attribute

if TYPE_CHECKING:
    from astra_accel.methods.ast.hf_system import HFASTSystem
    from astra_accel.methods.ast.sampler import ASTSampler
    from astra_accel.methods.ast.system import ASTProblem, ASTSystem
    from astra_accel.methods.ast.transcript import Segment, Transcript
    from astra_accel.methods.ast.value_system import HFASTValueFunctionSystem

__all__ = [
    "ASTProblem",
    "ASTSampler",
    "ASTSystem",
    "HFASTSystem",
    "HFASTValueFunctionSystem",
    "Segment",
    "Transcript",
]

_LOCATIONS = {
    "ASTEvaluator": "astra_accel.evaluation.evaluator:ASTEvaluator",
    "ASTProblem": "astra_accel.methods.ast.system:ASTProblem",
    "ASTSampler": "astra_accel.methods.ast.sampler:ASTSampler",
    "ASTSystem": "astra_accel.methods.ast.system:ASTSystem",
    "HFASTSystem": "astra_accel.methods.ast.hf_system:HFASTSystem",
    "HFASTValueFunctionSystem": "astra_accel.methods.ast.value_system:HFASTValueFunctionSystem",
    "Segment": "astra_accel.methods.ast.transcript:Segment",
    "Transcript": "astra_accel.methods.ast.transcript:Transcript",
}


def __getattr__(name: str) -> Any:
    return load_attribute(__name__, name, _LOCATIONS)
