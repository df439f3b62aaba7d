"""The contracts: what a system, a sampler, an algorithm, a scorer and an evaluator are.

Nothing in this folder knows of transformers or of distribution. Training checks shape, not ancestry: a class
that has the methods of a contract may be used without inheriting from it.
"""
