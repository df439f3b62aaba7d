"""What a model has no embedding for never comes to it, whoever wrote it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from astra_accel.config import LoRAConfiguration, ModelConfiguration, RolloutConfiguration, SamplingConfiguration
from astra_accel.methods.ast import HFASTSystem, HFASTValueFunctionSystem, Segment
from astra_accel.methods.ast.format import encode_text
from astra_accel.methods.ast.text_codec import TextCodec
from astra_accel.methods.ast.views import Views, check_prompts
from astra_accel.models.loading.tiny import build_tiny, save_tiny
from astra_accel.models.roles import find_roles

TURN = SamplingConfiguration(max_new_tokens=12)
ROLLOUT = RolloutConfiguration(tester=TURN, target=TURN)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of one tokenizer of 259 tokens with different numbers of rows, and some with a token that was added."""
    root = tmp_path_factory.mktemp("models")
    for rows in (262, 272, 384):
        save_tiny(root / str(rows), "qwen2", vocab_size=rows)
    for architecture in ("llama", "gpt2", "qwen2"):
        model, tokenizer = build_tiny(architecture)
        tokenizer.add_tokens(["<think>"])
        model.save_pretrained(root / f"{architecture} added")
        tokenizer.save_pretrained(root / f"{architecture} added")
    return {folder.name: folder for folder in root.iterdir()}


def views_of(tester: Path | str, target: Path | str, baseline: Path | str | None = None, **options: object) -> Views:
    models = [ModelConfiguration(path=str(path)) for path in (tester, target)]
    frozen = None if baseline is None else ModelConfiguration(path=str(baseline))
    rollout = RolloutConfiguration(tester=TURN, target=TURN, **options)
    return Views.from_files(find_roles(*models, frozen, LoRAConfiguration()), rollout)


# --- Ids that one model samples and another lacks -----------------------------------------------------------


def plain(model, context: tuple[int, ...], continuation: tuple[int, ...]) -> torch.Tensor:
    ids_1T = torch.tensor([[*context, *continuation]])
    with torch.no_grad():
        logprobs_TV = model(input_ids=ids_1T).logits[0].log_softmax(-1)
    return logprobs_TV[torch.arange(len(continuation)) + len(context) - 1, list(continuation)]


@pytest.mark.parametrize(
    ("tester", "target", "baseline", "most"),
    [
        ("384", "272", None, 384),
        pytest.param("272", "384", None, 272, marks=pytest.mark.slow),
        pytest.param("384", "384", "272", 272, marks=pytest.mark.slow),
        ("384", "272", "262", 262),
        ("262", "272", "384", 262),
    ],
)
def test_rollouts_and_log_probs_of_models_with_different_rows(folders, tester, target, baseline, most):
    """Baselines with fewer rows bound what is sampled; a target or tester with fewer gets the text."""
    system = HFASTValueFunctionSystem(folders[tester], folders[target], baseline and folders[baseline], rollout=ROLLOUT)
    states = [system.start(prompt) for prompt in ("Good morning.", "It rains.") * 3]
    said = []
    with system.rolling_out(2):
        for turn in range(2):
            seeds = [(row, turn) for row in range(len(states))]
            probes = system.rollout_prompt_with_tester(states, seeds=seeds)
            asked = [state + probe for state, probe in zip(states, probes, strict=True)]
            responses = system.rollout_prompt_with_target(asked, seeds=seeds)
            system.reward(states, probes, responses)
            said += zip(states, probes, strict=True)
            states = [system.advance(*turn) for turn in zip(states, probes, responses, strict=True)]
    highest = max(max(probe.sampled_ids) for _, probe in said)
    assert most - 40 <= highest < most
    for _, probe in said:
        assert max(probe.target_ids, default=0) < int(target)
    for state in states:
        for segment in state.segments:
            assert max(segment.tester_ids, default=0) < min(int(tester), int(baseline or tester))
    contexts, probes = map(list, zip(*said, strict=True))
    found = {
        "tester": system.get_tester_logprobs(contexts, probes),
        "baseline": system.get_baseline_logprobs(contexts, probes),
    }
    for role, rows in found.items():
        for context, probe, row in zip(contexts, probes, rows, strict=True):
            read = system.views.tester.own_turn(context, TURN.max_new_tokens)
            expected = plain(getattr(system.roles, role).model, read, probe.sampled_ids)
            torch.testing.assert_close(row[: len(expected)].detach(), expected, **CLOSE)
    sampled = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(probe.sampled_logprobs) for probe in probes], batch_first=True
    )
    torch.testing.assert_close(sampled, found["tester"].detach(), **CLOSE)
    heard = system.get_target_logprobs(contexts, probes)
    for context, probe, row in zip(contexts, probes, heard, strict=True):
        read = system.views.target.other_turn(context, len(probe.target_ids))
        expected = plain(system.roles.target.model, read, probe.target_ids)
        torch.testing.assert_close(row[: len(expected)], expected, **CLOSE)


def test_what_the_other_side_lacks_is_heard_as_text(folders):
    views = views_of(folders["384"], folders["272"])
    ids = (*encode_text(views.tester_tokenizer, "ab"), 300, *encode_text(views.tester_tokenizer, "c"))
    probe = views.probe(ids, frozenset())
    assert probe.tester_ids == ids
    assert probe.target_ids == encode_text(views.target_tokenizer, probe.text)
    back = views_of(folders["272"], folders["384"])
    response = back.response(ids, frozenset())
    assert response.target_ids == ids
    assert response.tester_ids == encode_text(back.tester_tokenizer, response.text)


def test_a_text_of_such_ids_is_refused_by_name(folders):
    """One that was not among the prompts that are checked at the beginning."""
    system = HFASTSystem(folders["llama added"], folders["llama added"], rollout=ROLLOUT)
    expected = r"holds the token id 260 at place 4, but LlamaForCausalLM has 260 embeddings"
    with pytest.raises(ValueError, match=f"context 0 {expected}"):
        system.rollout_prompt_with_tester(["Hm <think>"])
    with pytest.raises(ValueError, match=f"continuation 0 {expected}"):
        system.get_baseline_logprobs(["Hm"], ["So, <think>"])


def test_a_segment_of_such_ids_is_refused_by_name(folders):
    system = HFASTSystem(folders["272"], folders["272"], rollout=ROLLOUT)
    with pytest.raises(ValueError, match="continuation 0 holds the token id 300 at place 1"):
        system.get_tester_logprobs(["Hm"], [Segment("probe", "", (5, 300), (5,))])


def test_a_baseline_must_read_how_the_tester_ends_its_turns(tmp_path):
    """A base model, and a tester that got a token of its own for the ends of its turns."""
    base, chat = tmp_path / "base", tmp_path / "chat"
    for folder, rows, eos in ((base, 259, 257), (chat, 260, 259)):
        model, tokenizer = build_tiny("llama", vocab_size=rows, eos_token_id=eos)
        model.generation_config.eos_token_id = eos
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"the tester \(.*\) ends its turns with the token id 259, but the baseline"):
        views_of(chat, chat, base)
    views_of(chat, chat, chat)


# --- Texts that hold a token without an embedding -----------------------------------------------------------


@pytest.mark.parametrize(("architecture", "token"), [("llama", 260), ("gpt2", 257), ("qwen2", 259)])
@pytest.mark.parametrize(("role", "source"), [("tester", "added"), ("target", "other"), ("baseline", "grown")])
def test_a_prompt_is_refused_before_weights_load(folders, architecture, token, role, source):
    """By whoever can't read it: here the tester, or only the target of other tokens, or only the baseline."""
    added = folders[f"{architecture} added"]
    tester, target, baseline = added, added, None
    if source == "other":
        tester = f"tiny:{'gpt2' if architecture == 'llama' else 'llama'}"
    if source == "grown":
        tester = folders["qwen2 added"].parent / f"{architecture} grown"
        build_tiny(architecture, vocab_size=token + 1)[0].save_pretrained(tester)
        views_of(added, added).tester_tokenizer.save_pretrained(tester)
        target, baseline = tester, added
    views = views_of(tester, target, baseline)
    expected = (
        rf"^prompts.dev, row 2: the prompt holds the token '<think>' \(id {token}\), which "
        rf"the {role} \(.*{architecture} added\) can't read: it has {token} embeddings, for ids from 0 to {token - 1};"
    )
    with pytest.raises(ValueError, match=expected):
        check_prompts(["Hello.", "Please <think> first."], views, ROLLOUT, "prompts.dev")
    check_prompts(["Please think first."], views, ROLLOUT)


@pytest.mark.parametrize("role", ["tester", "target"])
def test_an_instruction_is_refused_by_its_field(folders, role):
    added = folders["llama added"]
    sides = {"tester": "tiny:llama", "target": "tiny:llama"} | {role: added}
    views_of(**sides, format="chat", **{f"{role}_instruction": "Do think."})
    with pytest.raises(ValueError, match=rf"^rollout.{role}_instruction holds the token '<think>' \(id 260\)"):
        views_of(**sides, format="chat", **{f"{role}_instruction": "Do <think>."})


@pytest.mark.parametrize("role", ["tester", "target"])
def test_a_chat_template_is_refused(folders, tmp_path, role):
    model, tokenizer = build_tiny("llama")
    tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|turn|>")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    sides = {"tester": "tiny:llama", "target": "tiny:llama"} | {role: tmp_path}
    views_of(**sides)
    expected = rf"^what the {role}'s tokenizer or chat template puts around every turn holds the token '<\|turn\|>'"
    with pytest.raises(ValueError, match=expected):
        views_of(**sides, format="chat")


def test_a_beginning_of_text_without_an_embedding_is_refused(folders, tmp_path):
    save_tiny(tmp_path, "llama")
    text = (tmp_path / "tokenizer.json").read_text()
    data = json.loads(text)
    data["added_tokens"].append({**data["added_tokens"][0], "id": 260, "content": "<begin>"})
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(data).replace('"ids": [256], "tokens": ["<s>"]', '"ids": [260], "tokens": ["<begin>"]')
    )
    with pytest.raises(ValueError, match=r"puts around every turn holds the token '<begin>' \(id 260\)"):
        views_of(tmp_path, tmp_path)


def test_a_tokenizer_with_a_token_too_many_is_no_mistake_as_such(folders):
    """Gemma 3's has one that only its multimodal sizes have an embedding for."""
    check_prompts(["Hello."], views_of(folders["llama added"], folders["llama added"]), ROLLOUT)


@pytest.mark.parametrize("tester", ["llama", "gpt2", "qwen2"])
def test_a_response_with_such_a_token_is_heard_in_pieces(folders, tester):
    """The target, of other tokens, may spell what was added to the tester's."""
    target = "gpt2" if tester == "llama" else "llama"
    views = views_of(folders[f"{tester} added"], f"tiny:{target}")
    text = "I <think> and <think><think>, so <thin"
    response = views.response(encode_text(views.target_tokenizer, text), frozenset())
    assert response.text == text
    assert views.tester_rows.has(response.tester_ids)
    assert views.tester_tokenizer.decode(response.tester_ids) == text
    assert response.tester_ids == encode_text(build_tiny(tester)[1], text)


def test_what_is_a_token_by_itself_and_has_no_embedding_is_left_out():
    tokenizer = build_tiny("llama")[1]
    num_ids = encode_text(tokenizer, "a")[0]
    ids = encode_text(tokenizer, "a!b")
    assert TextCodec(tokenizer, num_ids).readable(ids) == tuple(index for index in ids if index < num_ids)
