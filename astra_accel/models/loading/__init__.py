"""What a model's files show, before weights load.

``causal_models``: whether it is a causal language model. ``remote_code``: whether it comes with its own code.
``adapter_files``: whether a LoRA adapter is complete and fits its model. ``saved_adapters``: whether the roles can take
it, and how its weights load into a model. Where files are, and whether they are complete, is in ``astra_accel.files``.
"""
