"""Language models: the roles on one base, generation, log-probabilities, and the models that ship."""
