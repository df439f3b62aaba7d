"""How fast tokens are sampled, beside transformers' own generation: the base model and the LoRA tester.

    python benchmarks/decode.py [--dtype float32] [--episodes 64] [--tokens 32] [--repeats 3]

Every side continues the same prompts by exactly as many tokens, drawn at temperature 1 from the whole distribution, in
the same dtype. Ours: the roles of a system, within a rollout, as rollouts call them. Theirs: ``generate`` of models
that were loaded by themselves, all prompts in one batch, padded on the left, the adapter by PEFT; ``generate_batch``,
its continuous batching, of the base model, where it runs on this machine; and vLLM, compiled, if it is in
``.venv-vllm``, where ``make test-all`` puts it. It remembers no prompts from one time to the next. Adapters have
weights that are not 0.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import build_system, device, first_prompts, interleaved, medians, parse, report, seconds
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from astra_accel.config import LoRAConfiguration, SamplingConfiguration

Ids = tuple[int, ...]
Work = Callable[[], Any]
PAGE = 64
OURS, THEIRS, BATCHED, VLLM = "ours", "transformers generate", "transformers generate_batch", "vllm"
VLLM_PYTHON = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the ratios."""
    options = parse(__doc__, arguments, {"eager": "vLLM without compilation"}, episodes=64)
    with ExitStack() as processes:
        return _measure(options, processes)


def _measure(options: Any, processes: ExitStack) -> dict[str, Any]:
    system = build_system(options)
    _fill_adapter(system.tester)
    contexts = [system.views.tester.own_turn(system.start(text), options.tokens) for text in first_prompts(options)]
    base = system.roles.tester.files.load(getattr(torch, options.dtype)).to(device()).eval()
    config = _everything(base, options.tokens)
    works = {f"{OURS}, base": _ours(system, "target", contexts, options.tokens)}
    works[f"{THEIRS}, base"] = lambda: _theirs(base, contexts, config)
    left_out: dict[str, str] = {}
    try:
        _batched(base, contexts[:2], config)
        works[f"{BATCHED}, base"] = lambda: _batched(base, contexts, config)
    except Exception as error:  # whatever a version or a machine lacks
        left_out[BATCHED] = f"{type(error).__name__}: {str(error)[:120]}"
    source = Path(system.roles.tester.files.source)
    if not (VLLM_PYTHON.exists() and source.is_dir()):
        left_out[VLLM] = f"there is no {VLLM_PYTHON.parents[1].name}, or {source} is no folder"
    else:
        works[f"{VLLM}, base"] = processes.enter_context(_vllm(options, source, contexts))
    if not options.full:
        tester = _with_adapter(system.roles.tester.files.load(getattr(torch, options.dtype)).to(device()))
        works[f"{OURS}, LoRA"] = _ours(system, "tester", contexts, options.tokens)
        works[f"{THEIRS}, LoRA"] = lambda: _theirs(tester, contexts, config)
        if VLLM not in left_out:
            works[f"{VLLM}, LoRA"] = processes.enter_context(_vllm(options, source, contexts, tester))
    for work in works.values():
        work()  # warm
    measured = interleaved({name: seconds(work) for name, work in works.items()}, options.repeats)
    took = medians(measured)
    num_tokens = len(contexts) * options.tokens
    figures: dict[str, Any] = {f"tokens a second, {name}": num_tokens / value for name, value in took.items()}
    figures |= {f"{side} does not run here": why for side, why in left_out.items()}
    sides = [name.rpartition(", ") for name in works if not name.startswith(OURS)]
    ratios = {f"{side} / ours, {kind}": took[f"{side}, {kind}"] / took[f"{OURS}, {kind}"] for side, _, kind in sides}
    return report("decode", options, measured, ratios, figures=figures)


def _ours(system: Any, role: str, contexts: Sequence[Ids], num_tokens: int) -> Work:
    """Decode by a role within a rollout, where an adapter is merged if it can be."""
    sampling, model = SamplingConfiguration(max_new_tokens=num_tokens), getattr(system.roles, role)
    seeds = [(7, row) for row in range(len(contexts))]
    batch_rows = system.rollout_config.rows_on(model.model.device.type)

    def work() -> None:
        with torch.no_grad(), system.rolling_out(1), model.switch():
            found = model.generator.generate(contexts, seeds, sampling, (), batch_rows=batch_rows)
        _check([row.ids for row in found], num_tokens)

    return work


@torch.no_grad()
def _theirs(model: Any, contexts: Sequence[Ids], config: GenerationConfig) -> None:
    width = max(map(len, contexts))
    ids_BT = torch.tensor([(0,) * (width - len(ids)) + ids for ids in contexts], device=model.device)
    mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in contexts], device=model.device)
    found_BT = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=config)
    _check(found_BT[:, width:].tolist(), config.max_new_tokens)


def _batched(model: Any, contexts: Sequence[Ids], config: GenerationConfig) -> None:
    longest = max(map(len, contexts)) + config.max_new_tokens
    pages = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=len(contexts) * (1 + -(-longest // PAGE)),  # by itself it takes most of the machine's memory
        max_batch_tokens=sum(map(len, contexts)),
    )
    found = model.generate_batch(
        [list(ids) for ids in contexts], generation_config=config, continuous_batching_config=pages
    )
    _check([output.generated_tokens for output in found.values()], config.max_new_tokens)


@contextmanager
def _vllm(options: Any, source: Path, contexts: Sequence[Ids], adapted: Any = None) -> Iterator[Work]:
    """vLLM in a process of its own; with an adapter, if there is a PEFT model that has one."""
    with TemporaryDirectory() as folder, ExitStack() as ended:
        if adapted is not None:
            adapted.save_pretrained(folder)
        settings = {
            "model": str(source),
            "contexts": contexts,
            "tokens": options.tokens,
            "dtype": options.dtype,
            "adapter": None if adapted is None else folder,
            "rank": max(8, LoRAConfiguration().r),
            "eager": options.eager,
        }
        # Its own binding of threads would take cores that ours have.
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
        command = [str(VLLM_PYTHON), str(Path(__file__).with_name("vllm_run.py"))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        process = ended.enter_context(subprocess.Popen(command, **pipes))
        ended.callback(process.kill)

        def ask(line: str) -> str:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            answer = process.stdout.readline().strip()
            if not answer:
                raise RuntimeError("vLLM ended; its output above says why")
            return answer

        def work() -> None:
            if (lengths := ask("again")) != f"[{options.tokens}]":
                raise RuntimeError(f"continuations have {lengths} tokens, expected {options.tokens} each")

        ask(json.dumps(settings))
        yield work


def _check(rows: Sequence[Sequence[int]], num_tokens: int) -> None:
    lengths = sorted({len(row) for row in rows})
    if lengths != [num_tokens]:
        raise RuntimeError(f"continuations have {lengths} tokens, expected {num_tokens} each")


def _everything(model: Any, num_tokens: int) -> GenerationConfig:
    """Sample from the whole distribution, and end nowhere."""
    model.generation_config.eos_token_id = None
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
    return GenerationConfig(**settings, max_new_tokens=num_tokens)


def _with_adapter(model: Any) -> Any:
    """The adapter that ours has by default, by PEFT alone."""
    lora = LoRAConfiguration()
    model.generation_config.eos_token_id = None
    adapted = get_peft_model(model, LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules="all-linear"))
    _fill_adapter(adapted)
    return adapted.eval()


@torch.no_grad()
def _fill_adapter(model: Any) -> None:
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.02)


if __name__ == "__main__":
    main()
