"""Convert a 4-bit GGUF file to float32 safetensors, tokenizer and chat template: a script that ``embedded`` starts.

It runs in its own process because the caller's may be a rank of a distributed run: with DeepSpeed ZeRO-3 or FSDP on,
transformers would load the weights split or empty. It also keeps transformers' progress bars and messages off the
caller's terminal, and its working memory (over 1 GB) out of the caller's process. It imports nothing from the package,
whose folder is not on the module path there.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any


def convert(gguf: Path, model_folder: Path) -> None:
    """Write a GGUF file as float32 safetensors, with its tokenizer and chat template, to a folder."""
    import torch
    import transformers
    from gguf import GGUFReader

    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):
        # Newer releases keep the 4-bit blocks where the package `kernels` is installed.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    # The weights are plain floats now, but save_pretrained refuses a model that is marked as quantised.
    model.is_quantized = False
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, model_max_length=model.config.max_position_embeddings
    )
    _split_digits(tokenizer, GGUFReader(gguf).fields["tokenizer.ggml.pre"].contents())
    model.save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)


def _split_digits(tokenizer: Any, pre_tokenizer: str) -> None:
    """Add the tokenizer step that transformers' GGUF reader leaves out.

    SmolLM splits off every digit before the byte-level rule. Without that, white space before a number is split
    differently from the model's training: "a  1" would hold two single spaces, not one double space.
    """
    from tokenizers import pre_tokenizers

    if pre_tokenizer != "smollm":
        raise ValueError(f"the GGUF file's pre-tokenizer is {pre_tokenizer!r}, expected 'smollm'")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def exit_with_parent() -> None:
    """Exit when the parent process is gone: nothing waits for the folder any more."""
    while os.read(0, 1):  # not sys.stdin: a thread that waits in its buffer breaks the interpreter's own exit
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=exit_with_parent, daemon=True).start()
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
