"""What can be told of a model from its files, before weights load.

``causal_models``: whether it is a causal language model. ``remote_code``: whether it brings code of its own.
``adapter_files``: whether a LoRA adapter is whole and fits its model. ``saved_adapters``: whether the roles can take
it, and how its weights get into a model. Where files are, and whether they are whole, is in ``astra_accel.files``.
"""
