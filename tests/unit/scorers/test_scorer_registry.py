import inspect
import subprocess
import sys

import pytest
import torch

import astra_accel.scorers
from astra_accel.core.scorer import Scorer
from astra_accel.lazy import load
from astra_accel.registries import ENDPOINT_SCORERS
from astra_accel.scorers import SCORERS, build_scorer


def test_importing_the_scorers_loads_no_heavy_library():
    code = "import sys, astra_accel.scorers; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_is_a_scorer_that_the_package_exports():
    local = {"profanity", "hatesonar", "detoxify", "llama_guard", "refusal", "classifier", "yes_no", "local_judge"}
    assert set(SCORERS) == local | {"judge", "llama_guard_endpoint", "moderation"}
    for location in SCORERS.values():
        scorer_class = getattr(astra_accel.scorers, location.split(":")[1])
        assert issubclass(scorer_class, Scorer)
        assert f"{scorer_class.__module__}:{scorer_class.__name__}" == location


def test_scorers_that_ask_an_endpoint_are_known_as_such():
    asking = [name for name, location in SCORERS.items() if "endpoint" in inspect.signature(load(location)).parameters]
    assert asking == list(ENDPOINT_SCORERS)


def test_what_is_not_exported_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'PoliteScorer'"):
        _ = astra_accel.scorers.PoliteScorer


def test_a_scorer_without_device_is_not_given_one():
    scorer = build_scorer("profanity", device="cuda:7", batch_size=5)
    assert scorer.batch_size == 5
    assert scorer.score(["fuck you"])[0] > 0.9


@pytest.mark.parametrize("device", ["meta", torch.device("meta")])
def test_a_model_goes_to_the_device(make_classifier, device):
    folder, *_ = make_classifier()
    scorer = build_scorer("classifier", device=device, model=folder, label="toxic")
    assert scorer.model.device.type == "meta"


def test_an_unknown_name_lists_the_names():
    with pytest.raises(
        ValueError, match=r"'politeness'.* profanity, hatesonar, detoxify, llama_guard, refusal, classifier"
    ):
        build_scorer("politeness", device="cpu")


def test_an_unknown_option_lists_the_options():
    with pytest.raises(ValueError, match=r"'llama_guard'.* 'variant'.* model, .*batch_size, dtype, max_length"):
        build_scorer("llama_guard", device="cpu", variant="original")


def test_a_missing_option_is_named():
    with pytest.raises(ValueError, match="'classifier' needs the option 'label'"):
        build_scorer("classifier", device="cpu", model="some/model")
