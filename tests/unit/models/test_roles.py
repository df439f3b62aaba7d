"""Three roles on as few copies of the weights as possible: each is the model that it says it is, at every time.

The oracle of a role is a model loaded on its own, an adapter merged into its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from astra_accel.config import ComputeConfiguration, LoRAConfiguration, ModelConfiguration, SamplingConfiguration
from astra_accel.models.decoding.generation import generate
from astra_accel.models.decoding.prefill import ScoreRequest
from astra_accel.models.forward.prefix_tree import Ids
from astra_accel.models.language_model import LanguageModel
from astra_accel.models.loading.tiny import build_tiny, save_tiny
from astra_accel.models.logprobs import pad_logprobs, sequence_logprobs
from astra_accel.models.roles import Roles, _wants_merging, find_roles, load_roles

CONTEXTS = [(1, 2, 3), (9,), (30, 20, 10, 5, 60)]
CONTINUATIONS = [(7, 8), (11, 12, 13, 14), (100,)]
SEEDS = [(row,) for row in range(3)]
LORA = LoRAConfiguration(r=4, alpha=8)
COMPUTE = ComputeConfiguration()

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:`is_gradient_checkpointing`")


def load(
    tester: ModelConfiguration,
    target: ModelConfiguration,
    baseline: ModelConfiguration | None = None,
    lora: LoRAConfiguration | None = LORA,
    compute: ComputeConfiguration = COMPUTE,
) -> Roles:
    torch.manual_seed(0)  # a new adapter's A is random
    return load_roles(find_roles(tester, target, baseline, lora), "cpu", compute)


def model(path: str | Path = "tiny", **options: Any) -> ModelConfiguration:
    return ModelConfiguration(path=str(path), **options)


def save_adapter(folder: Path, path: str | Path = "tiny:llama", seed: int = 0, **options: Any) -> str:
    """A LoRA adapter that changes the model: its B is not the zeros that it usually begins with."""
    base = build_tiny(str(path).partition(":")[2])[0]
    torch.manual_seed(seed)
    config = LoraConfig(
        r=3, lora_alpha=12, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **options
    )
    get_peft_model(base, config).save_pretrained(folder)
    return str(folder)


def score(role: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return pad_logprobs(role.logprobs(CONTEXTS, CONTINUATIONS))


def score_alone(architecture: str = "llama", adapter: str | None = None, seed: int = 0) -> torch.Tensor:
    """What a model says that is loaded for this alone."""
    alone = build_tiny(architecture, seed=seed)[0]
    if adapter is not None:
        alone = PeftModel.from_pretrained(alone, adapter).merge_and_unload()
    with torch.no_grad():
        return pad_logprobs(sequence_logprobs(alone, CONTEXTS, CONTINUATIONS))


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-2)


def train(roles: Roles) -> None:
    """Move every weight that is trained."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in roles.trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def trained_names(roles: Roles) -> set[str]:
    return {name for name, parameter in roles.trained.named_parameters() if parameter.requires_grad}


def frozen_parameters(roles: Roles) -> list[torch.nn.Parameter]:
    trained = {id(parameter) for parameter in roles.trained.parameters() if parameter.requires_grad}
    every = [parameter for role in (roles.target, roles.baseline) for parameter in role.model.parameters()]
    return [parameter for parameter in every if id(parameter) not in trained]


# --- How many copies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_one_copy_serves_all_three(architecture):
    path = f"tiny:{architecture}"
    roles = load(model(path), model(path))
    assert roles.tester.model is roles.target.model is roles.baseline.model
    assert roles.trained.get_base_model() is roles.tester.model
    assert_same(score(roles.tester), score_alone(architecture))
    train(roles)
    assert differ(score(roles.tester), score_alone(architecture))
    assert_same(score(roles.target), score_alone(architecture))
    assert_same(score(roles.baseline), score_alone(architecture))
    assert differ(score(roles.tester), score_alone(architecture))


def test_another_target_is_another_copy(tmp_path):
    roles = load(model(), model(save_tiny(tmp_path, "llama", seed=9)))
    assert roles.tester.model is roles.baseline.model
    assert roles.target.model is not roles.tester.model
    train(roles)
    assert_same(score(roles.target), score_alone(seed=9))
    assert_same(score(roles.baseline), score_alone())


def test_another_baseline_is_another_copy(tmp_path):
    roles = load(model(), model(), model(save_tiny(tmp_path, "llama", seed=9)))
    assert roles.tester.model is roles.target.model
    train(roles)
    assert_same(score(roles.baseline), score_alone(seed=9))
    assert_same(score(roles.target), score_alone())


def test_a_tester_trained_in_full_has_weights_of_its_own():
    roles = load(model(), model(), lora=None)
    assert roles.trained is roles.tester.model
    assert roles.baseline.model is roles.target.model
    assert roles.tester.model is not roles.baseline.model
    assert all(parameter.requires_grad for parameter in roles.tester.model.parameters())
    assert_same(score(roles.tester), score_alone())
    train(roles)
    assert differ(score(roles.tester), score_alone())
    assert_same(score(roles.baseline), score_alone())
    assert_same(score(roles.target), score_alone())


# --- Adapters that were there before ------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [LORA, None])
def test_a_tester_goes_on_from_its_adapter(tmp_path, lora):
    """The baseline is where the tester began: not the bare base, and not where the tester has got to."""
    adapter = save_adapter(tmp_path)
    roles = load(model(adapter=adapter), model(), lora=lora)
    assert roles.tester.model is roles.target.model is roles.baseline.model
    start = score_alone(adapter=adapter)
    assert differ(start, score_alone())
    for role, expected in ((roles.tester, start), (roles.baseline, start), (roles.target, score_alone())):
        assert_same(score(role), expected)
    train(roles)
    assert differ(score(roles.tester), start)
    moved = score(roles.tester)
    assert_same(score(roles.baseline), start)
    assert_same(score(roles.target), score_alone())
    assert torch.equal(score(roles.tester), moved)


def test_a_target_with_an_adapter_of_its_own(tmp_path):
    mine, its = save_adapter(tmp_path / "mine", seed=1), save_adapter(tmp_path / "its", seed=2)
    roles = load(model(adapter=mine), model(adapter=its))
    assert roles.tester.model is roles.target.model is roles.baseline.model
    train(roles)
    assert_same(score(roles.target), score_alone(adapter=its))
    assert_same(score(roles.baseline), score_alone(adapter=mine))
    fresh = load(model(), model(adapter=its))
    train(fresh)
    assert_same(score(fresh.target), score_alone(adapter=its))
    assert_same(score(fresh.baseline), score_alone())


def test_a_target_on_the_adapter_that_the_tester_began_with(tmp_path):
    adapter = save_adapter(tmp_path)
    roles = load(model(adapter=adapter), model(adapter=adapter))
    train(roles)
    assert_same(score(roles.target), score_alone(adapter=adapter))
    assert_same(score(roles.baseline), score_alone(adapter=adapter))
    assert sorted(roles.trained.peft_config) == ["baseline", "default"]


def test_a_bare_baseline_where_it_is_asked_for(tmp_path):
    roles = load(model(adapter=save_adapter(tmp_path)), model(), baseline=model())
    assert_same(score(roles.baseline), score_alone())


def test_adapters_on_another_base(tmp_path):
    its = save_adapter(tmp_path, "tiny:gpt2")
    roles = load(model(), model("tiny:gpt2", adapter=its))
    assert_same(score(roles.target), score_alone("gpt2", adapter=its))
    assert_same(score(roles.tester), score_alone())


def test_a_full_tester_beside_an_adapter(tmp_path):
    """Baseline and target share the frozen copy, one with the adapter and one without."""
    its = save_adapter(tmp_path)
    roles = load(model(), model(adapter=its), lora=None)
    assert roles.baseline.model is roles.target.model
    for _ in range(2):
        assert_same(score(roles.baseline), score_alone())
        assert_same(score(roles.target), score_alone(adapter=its))
    assert_same(score(roles.tester), score_alone())


def edit_adapter(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(edit(load_file(file)), file)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize("role", ["tester", "target"])
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: dict(list(tensors.items())[2:]), "lacks 2 of 28 tensors and has 0"),
        (lambda tensors: {f"other.{name}": tensor for name, tensor in tensors.items()}, "lacks 28 .* and has 28"),
        (lambda tensors: tensors | {"layers.9.lora_A.weight": torch.zeros(1)}, "lacks 0 .* and has 1 .*layers.9"),
    ],
)
def test_an_adapter_of_other_layers_is_an_error_and_never_the_base_alone(tmp_path, role, edit, message):
    adapter = save_adapter(tmp_path)
    edit_adapter(tmp_path, edit)
    with pytest.raises(ValueError, match=f"the adapter {adapter} does not fit its model: it {message}"):
        load(**{"tester": model(), "target": model(), role: model(adapter=adapter)})


@pytest.mark.parametrize("role", ["tester", "target", "baseline"])
def test_only_lora_adapters_can_be_switched(tmp_path, role):
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    get_peft_model(build_tiny("llama")[0], config).save_pretrained(tmp_path)
    models = {"tester": model(), "target": model(), role: model(adapter=str(tmp_path))}
    with pytest.raises(ValueError, match=f"the adapter {tmp_path} is of type IA3; expected LORA"):
        load(**models)


# --- What is trained ----------------------------------------------------------------------------------------


def cases(tmp_path: Path) -> dict[str, Roles]:
    mine, its = save_adapter(tmp_path / "mine", seed=1), save_adapter(tmp_path / "its", seed=2)
    return {
        "new adapter": load(model(), model()),
        "old adapter": load(model(adapter=mine), model()),
        "three adapters": load(model(adapter=mine), model(adapter=its)),
        "new adapter, target's adapter": load(model(), model(adapter=its)),
        "full": load(model(), model(), lora=None),
        "full, target's adapter": load(model(), model(adapter=its), lora=None),
    }


def test_using_a_frozen_role_leaves_the_trained_weights_trained_and_the_frozen_frozen(tmp_path):
    sampling = SamplingConfiguration(max_new_tokens=2)
    for name, roles in cases(tmp_path).items():
        before = trained_names(roles)
        assert before, name
        assert all(".default" in each for each in before) or roles.trained is roles.tester.model, name
        assert not any(parameter.requires_grad for parameter in frozen_parameters(roles)), name
        for role in (roles.baseline, roles.target, roles.tester, roles.baseline):
            score(role)
            role.generate(CONTEXTS, SEEDS, sampling, batch_rows=2)
            assert trained_names(roles) == before, name
            assert not any(parameter.requires_grad for parameter in frozen_parameters(roles)), name


def test_an_error_in_a_frozen_role_leaves_the_tester_as_it_was(tmp_path):
    for name, roles in cases(tmp_path).items():
        train(roles)
        before, expected = trained_names(roles), score(roles.tester)
        for role in (roles.baseline, roles.target):
            with pytest.raises(ValueError, match="context 0 is empty"):
                role.logprobs([()], [(1,)])
        assert trained_names(roles) == before, name
        assert torch.equal(score(roles.tester), expected), name


def test_a_backward_reaches_the_trained_weights_alone(tmp_path):
    """Also where a frozen role runs between the tester's forward and its backward."""
    for name, roles in cases(tmp_path).items():
        logprobs = roles.tester.logprobs(CONTEXTS, CONTINUATIONS)
        score(roles.baseline)
        score(roles.target)
        sum(values.sum() for values in logprobs).backward()
        with_gradient = {each for each, parameter in roles.trained.named_parameters() if parameter.grad is not None}
        assert with_gradient == trained_names(roles), name
        assert not any(parameter.grad is not None for parameter in frozen_parameters(roles)), name


def test_the_new_adapter_is_as_configured():
    lora = LoRAConfiguration(r=3, alpha=12, target_modules=["q_proj", "up_proj"])
    roles = load(model(), model(), lora=lora)
    names = trained_names(roles)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj", "up_proj"}
    assert len(names) == 2 * 2 * 2  # layers, modules, A and B
    adapted = roles.tester.model.model.layers[0].self_attn.q_proj
    assert adapted.lora_A["default"].weight.shape == (3, 48)
    assert adapted.scaling["default"] == 4.0


@pytest.mark.parametrize("lora", [LORA, None])
def test_dropout_is_off_in_the_tester(lora):
    """GPT-2's configuration drops a tenth of nearly everything in training."""
    roles = load(model("tiny:gpt2"), model("tiny:gpt2"), lora=lora)
    assert roles.tester.model.config.resid_pdrop == 0.1
    assert not any(module.training for module in roles.trained.modules())
    assert torch.equal(score(roles.tester), score(roles.tester))


def test_dropout_of_an_adapter_is_off(tmp_path):
    roles = load(model(adapter=save_adapter(tmp_path, lora_dropout=0.5)), model())
    assert torch.equal(score(roles.tester), score(roles.tester))
    assert torch.equal(score(roles.baseline), score(roles.baseline))
    assert_same(score(roles.tester), score(roles.baseline))


def test_every_role_generates_as_itself(tmp_path):
    mine, its = save_adapter(tmp_path / "mine", seed=1), save_adapter(tmp_path / "its", seed=2)
    roles = load(model(adapter=mine), model(adapter=its), baseline=model())
    sampling = SamplingConfiguration(max_new_tokens=6, top_k=5)
    ends = roles.tester.files.end_ids
    found = []
    for role, adapter in ((roles.tester, mine), (roles.target, its), (roles.baseline, None)):
        alone = build_tiny("llama")[0]
        if adapter is not None:
            alone = PeftModel.from_pretrained(alone, adapter).merge_and_unload()
        expected = [row.ids for row in generate(alone, CONTEXTS, SEEDS, sampling, end_ids=ends)]
        assert [row.ids for row in role.generate(CONTEXTS, SEEDS, sampling, batch_rows=64)] == expected
        found.append(expected)
    assert found[0] != found[1] != found[2] != found[0]


# --- A rollout ----------------------------------------------------------------------------------------------


def state(roles: Roles) -> tuple[set[str], dict[str, int], dict[str, torch.Tensor]]:
    """What is trained, where it is, and all weights."""
    values = roles.trained.state_dict()
    return (
        trained_names(roles),
        {name: value.data_ptr() for name, value in values.items()},
        {name: value.clone() for name, value in values.items()},
    )


@pytest.mark.parametrize("merge_adapter", [True, False])
@pytest.mark.parametrize("lora", [LORA, None])
def test_a_rollout_speaks_with_the_weights_as_they_are_and_leaves_them_alone(tmp_path, merge_adapter, lora):
    """Merged or not, after training and after an error, the roles say what they say outside of a rollout."""
    compute = ComputeConfiguration(merge_adapter=merge_adapter)
    roles = load(model(), model(adapter=save_adapter(tmp_path)), lora=lora, compute=compute)
    every = (roles.tester, roles.target, roles.baseline)
    sampling = SamplingConfiguration(max_new_tokens=6)

    def said() -> list[list[tuple[int, ...]]]:
        return [[row.ids for row in role.generate(CONTEXTS, SEEDS, sampling, batch_rows=64)] for role in every[:2]]

    for _ in range(2):
        train(roles)
        before, expected, scores = state(roles), said(), [score(role) for role in every]
        with roles.rolling_out():
            assert said() == said() == expected
            for role, values in zip(every, scores, strict=True):
                assert_same(score(role), values)
        with pytest.raises(ValueError, match="context 0 is empty"), roles.rolling_out():
            roles.tester.logprobs([()], [(1,)])
        after = state(roles)
        assert after[:2] == before[:2]
        assert all(torch.equal(after[2][name], value) for name, value in before[2].items())
        assert all(torch.equal(score(role), values) for role, values in zip(every, scores, strict=True))


@pytest.mark.parametrize(
    ("choice", "dtype", "device", "wanted"),
    [
        (None, torch.float32, "cpu", True),
        (None, torch.bfloat16, "cpu", True),
        (None, torch.float32, "cuda", True),
        (None, torch.bfloat16, "cuda", False),
        (True, torch.bfloat16, "cuda", True),
        (False, torch.float32, "cpu", False),
    ],
)
def test_a_copy_of_large_weights_on_a_gpu_is_made_only_if_asked_for(choice, dtype, device, wanted):
    model = SimpleNamespace(dtype=dtype, device=torch.device(device))
    assert _wants_merging(model, ComputeConfiguration(merge_adapter=choice)) == wanted


@contextmanager
def counting(role: LanguageModel) -> Iterator[list[int]]:
    """A list with an entry for each forward of the model within."""
    runs: list[int] = []
    hook = role.model.get_input_embeddings().register_forward_hook(lambda *_: runs.append(1))
    yield runs
    hook.remove()


def num_forwards(roles: Roles, role: LanguageModel, contexts: list[Ids], continuations: list[Ids]) -> int:
    """How often the model runs for some log-probs, which are those that it gives on its own."""
    score(roles.tester)  # the model's checks
    with counting(role) as runs:
        found = role.logprobs(contexts, continuations)
    with role.switch():
        assert_same(pad_logprobs(found), pad_logprobs(sequence_logprobs(role.model, contexts, continuations)))
    return len(runs)


def hear(role: LanguageModel) -> None:
    """Let a role answer to what is scored on the way."""
    sampling = SamplingConfiguration(max_new_tokens=2)
    heard = [(*context, *ids) for context, ids in zip(CONTEXTS, CONTINUATIONS, strict=True)]
    asked = [ScoreRequest(len(context), ids) for context, ids in zip(CONTEXTS, CONTINUATIONS, strict=True)]
    role.generate(heard, SEEDS, sampling, batch_rows=64, scored=asked)


def test_what_a_frozen_role_said_in_a_rollout_is_not_computed_again():
    """Until the next rollout, by all roles of the same weights, and by no other."""
    roles = load(model(), model())
    train(roles)
    with torch.no_grad():
        with roles.rolling_out():
            hear(roles.target)
        for role, expected in ((roles.target, 0), (roles.baseline, 0), (roles.tester, 1)):
            assert num_forwards(roles, role, CONTEXTS, CONTINUATIONS) == expected
        # What was not heard is computed, and that alone.
        assert num_forwards(roles, roles.target, [*CONTEXTS, (4,)], [*CONTINUATIONS, (5, 6)]) == 1
        with roles.rolling_out():
            assert num_forwards(roles, roles.baseline, CONTEXTS, CONTINUATIONS) == 1


def test_nothing_is_recalled_in_another_precision():
    """A rollout is in the weights' own, and updates may be under autocast; then, the baseline is asked again."""
    roles = load(model(), model())
    with torch.no_grad():
        with roles.rolling_out():
            hear(roles.target)
        with torch.autocast("cpu", torch.bfloat16):
            assert num_forwards(roles, roles.baseline, CONTEXTS, CONTINUATIONS) == 1
        assert num_forwards(roles, roles.baseline, CONTEXTS, CONTINUATIONS) == 0


def test_what_is_coarse_is_recalled_in_its_rollout_alone():
    """Read with a cache, bf16 differs from how an update reads it; the reward, within the rollout, may look it up."""
    roles = load(model(dtype="bfloat16"), model(dtype="bfloat16"))
    with torch.no_grad():
        score(roles.tester)  # the model's checks
        with roles.rolling_out():
            hear(roles.target)
            for role in (roles.target, roles.baseline):
                with counting(role) as runs:
                    role.logprobs(CONTEXTS, CONTINUATIONS)
                assert runs == []
        assert num_forwards(roles, roles.baseline, CONTEXTS, CONTINUATIONS) == 1


def test_a_role_of_other_weights_recalls_nothing(tmp_path):
    roles = load(model(), model(adapter=save_adapter(tmp_path)))
    with torch.no_grad(), roles.rolling_out():
        hear(roles.target)
        assert num_forwards(roles, roles.target, CONTEXTS, CONTINUATIONS) == 0
        assert num_forwards(roles, roles.baseline, CONTEXTS, CONTINUATIONS) == 1


def test_the_tester_is_never_recalled():
    """Its weights move: what it said a rollout ago is no longer true."""
    roles = load(model(), model(), lora=None)
    with torch.no_grad():
        with roles.rolling_out():
            hear(roles.tester)
        train(roles)
        assert num_forwards(roles, roles.tester, CONTEXTS, CONTINUATIONS) == 1


def test_what_was_read_is_remembered_in_a_rollout_alone():
    roles = load(model(), model())
    with roles.rolling_out():
        assert roles.tester.generator.memory is not None
        assert roles.tester.generator.memory is not roles.target.generator.memory
    assert roles.tester.generator.memory is roles.target.generator.memory is roles.baseline.generator.memory is None


# --- Types --------------------------------------------------------------------------------------------------


def types(module: torch.nn.Module, part: str = "") -> set[torch.dtype]:
    return {parameter.dtype for name, parameter in module.named_parameters() if part in name}


def test_auto_is_float32_on_a_cpu(tmp_path):
    half = build_tiny("llama")
    half[0].to(torch.bfloat16).save_pretrained(tmp_path)
    half[1].save_pretrained(tmp_path)
    assert types(AutoModelForCausalLM.from_pretrained(tmp_path)) == {torch.bfloat16}
    for lora in (LORA, None):
        roles = load(model(tmp_path), model(tmp_path), lora=lora)
        assert types(roles.tester.model) | types(roles.target.model) == {torch.float32}


def test_auto_elsewhere_is_the_checkpoints_own_but_for_a_tester_trained_in_full(tmp_path):
    """The meta device stands for any that is no CPU."""
    half = build_tiny("llama")
    half[0].to(torch.bfloat16).save_pretrained(tmp_path)
    half[1].save_pretrained(tmp_path)
    roles = load_roles(find_roles(model(tmp_path), model(tmp_path), None, None), "meta")
    assert types(roles.tester.model) == {torch.float32}
    assert types(roles.baseline.model) == types(roles.target.model) == {torch.bfloat16}


def test_types_that_are_asked_for():
    half = model(dtype="bfloat16")
    roles = load(half, half)
    assert roles.tester.model is roles.target.model
    assert types(roles.tester.model, "embed_tokens") == {torch.bfloat16}
    # An adapter is small, and its updates smaller: PEFT keeps it in float32.
    assert types(roles.tester.model, "lora_") == {torch.float32}
    assert score(roles.tester).dtype == torch.float32
    torch.testing.assert_close(score(roles.tester), score_alone(), rtol=0, atol=0.2)


def test_roles_of_different_types_are_different_copies():
    roles = load(model(dtype="float32"), model(dtype="bfloat16"), lora=None)
    assert roles.baseline.model is not roles.target.model
    assert types(roles.baseline.model) == {torch.float32}
    assert types(roles.target.model) == {torch.bfloat16}
    assert types(load(model(dtype="bfloat16"), model(), lora=None).tester.model) == {torch.bfloat16}


# --- What is checked before any weights load ----------------------------------------------------------------


def test_the_baseline_must_share_the_testers_tokenizer():
    message = r"the baseline \(tiny:qwen2\) has another tokenizer than the tester \(tiny:llama\)"
    with pytest.raises(ValueError, match=message):
        find_roles(model("tiny:llama"), model("tiny:llama"), model("tiny:qwen2"), LORA)


def test_whether_tester_and_target_share_a_tokenizer(tmp_path):
    folder = save_tiny(tmp_path, "llama", seed=4)
    assert find_roles(model(), model(folder), None, LORA).shared_tokenizer
    assert not find_roles(model(), model("tiny:gpt2"), None, LORA).shared_tokenizer


def test_targets_of_a_new_adapter_are_checked(tmp_path):
    wrong = LoRAConfiguration(target_modules=["c_attn"])
    with pytest.raises(ValueError, match=r"lora\.target_modules: \['c_attn'\] match no linear layer of tiny:llama"):
        find_roles(model(), model(), None, wrong)
    # They play no part where the adapter is there already.
    assert find_roles(model(adapter=save_adapter(tmp_path)), model(), None, wrong).lora == wrong


def test_a_model_that_is_not_there_is_named_by_its_role(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"target.path is the folder {tmp_path}, which has no config.json"):
        find_roles(model(), model(tmp_path), None, LORA)
    with pytest.raises(FileNotFoundError, match=f"baseline.path is the folder {tmp_path}"):
        find_roles(model(), model(), model(tmp_path), LORA)
