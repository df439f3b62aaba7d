"""A generator of another kind stands in for the local one, without a change in system, sampler or algorithm."""

from __future__ import annotations

import pytest
import torch

from astra_accel import DPO, AccelTrainer, ASTSampler, HFASTSystem, TrainingConfiguration
from astra_accel.core.sampler import walk
from astra_accel.models.decoding.turn_plan import Generated
from astra_accel.models.forward.capabilities import transformers_model
from astra_accel.models.logprobs import sequence_logprobs
from tests.helpers.runs import metrics


class ByTransformers:
    """Samples with transformers' own ``generate``, a row at a time, and notes what it is asked."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def take_weights(self, step):
        self.calls.append(("take_weights", step))

    def begin(self, num_turns):
        self.calls.append(("begin", num_turns))

    def end(self):
        self.calls.append(("end",))

    @torch.no_grad()
    def generate(self, contexts, seeds, sampling, end_ids, scored=None, *, batch_rows=64):
        self.calls.append(("generate", len(contexts)))
        rows = []
        for context, seed in zip(contexts, seeds, strict=True):
            torch.manual_seed(sum(seed) % 2**31)
            ids_1T = torch.tensor([context])
            written = self.model.generate(
                input_ids=ids_1T,
                attention_mask=torch.ones_like(ids_1T),
                do_sample=True,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=list(end_ids),
                pad_token_id=0,
            )
            ids = tuple(written[0, len(context) :].tolist())
            rows.append(ids)
        logprobs = sequence_logprobs(self.model, contexts, rows, packing="none")
        return [Generated(ids, tuple(values.tolist())) for ids, values in zip(rows, logprobs, strict=True)]


@pytest.fixture
def trained(tmp_path):
    system = HFASTSystem("tiny", "tiny")
    generator = ByTransformers(transformers_model(system.roles.tester.model))
    system.roles.tester.generator = generator
    sampler = ASTSampler(system, ["Good morning.", "It rains again."], tree_width=2, tree_depth=2)
    config = TrainingConfiguration(
        training_steps=2, num_episodes_per_experience=2, batch_size=4, output_dir=tmp_path / "run", sample_steps=None
    )
    trainer = AccelTrainer(config, sampler, DPO(system))
    trainer.train()
    return trainer, generator


def test_a_rollout_asks_it_in_order(trained):
    _, generator = trained

    rollout = [("begin", 2), ("generate", 4), ("generate", 8), ("end",)]
    assert generator.calls == [("take_weights", 1), *rollout, ("take_weights", 2), *rollout]


def test_its_probes_are_trained_on(trained, tmp_path):
    trainer, _ = trained

    graph = trainer.harness.collect(7).graphs[0]
    nodes = [node for _, node in walk(graph)]
    assert all(node.probe.sampled_ids for node in nodes)
    assert all(torch.isfinite(torch.tensor(node.reward)) for node in nodes)
    assert [line["step"] for line in metrics(tmp_path / "run")][-1] == 2
