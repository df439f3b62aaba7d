"""vLLM's side of ``decode.py``, run by the Python of vLLM's own environment.

Its first line of input is JSON: the model's folder, the contexts as token ids, how many tokens to draw, the dtype, and
the folder of an adapter or null. For each further line it continues all contexts once, without what it remembers of
them, and answers with a line. vLLM's own logs go to standard error.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Load the model, say so, and continue the contexts as often as asked."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    contexts, num_tokens = settings["contexts"], settings["tokens"]
    longest = max(map(len, contexts)) + num_tokens
    model = LLM(
        settings["model"],
        dtype=settings["dtype"],
        max_model_len=longest,
        max_num_seqs=len(contexts),
        max_num_batched_tokens=max(sum(map(len, contexts)), longest),
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        enforce_eager=settings["eager"],
        disable_log_stats=True,
        **({"enable_lora": True, "max_lora_rank": settings["rank"], "max_loras": 1} if settings["adapter"] else {}),
    )
    adapter = LoRARequest("tester", 1, settings["adapter"]) if settings["adapter"] else None
    sampling = SamplingParams(temperature=1.0, max_tokens=num_tokens, ignore_eos=True)
    prompts = [{"prompt_token_ids": ids} for ids in contexts]
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        found = model.generate(prompts, sampling, lora_request=adapter, use_tqdm=False)
        print(sorted({len(each.outputs[0].token_ids) for each in found}), file=answers, flush=True)


if __name__ == "__main__":
    main()
