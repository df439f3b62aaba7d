"""The contracts: what a system, a sampler, an algorithm, a scorer and an evaluator are.

Nothing in this folder depends on transformers or on distribution. Contracts are structural: a class with the
right methods may be used without inheriting from ours.
"""
