"""What can be told of a model from its files, before weights load.

``places``: where the files are. ``checkpoint_files``: whether they are whole. ``causal_models``: whether it is a causal
language model. ``remote_code``: whether it brings code of its own. ``adapter_files``: whether a LoRA adapter is whole
and fits its model.
"""
