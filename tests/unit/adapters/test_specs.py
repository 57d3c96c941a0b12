"""Names and knobs: what is accepted, and what is said otherwise."""

from __future__ import annotations

import math
import pickle

import pytest
from pydantic import ValidationError

from adapters.base import REGISTRY, Adapter, LowRankSpec
from adapters.errors import StudioError, UnknownNameError, UserInputError, nearest
from adapters.methods.lora import LoraSpec
from adapters.registry import make_spec, parse_spec


def test_the_nearest_name_ignores_case_and_small_slips():
    assert nearest("DORA", ["lora", "dora"]) == "dora"
    assert nearest("cross-atention", ["attention", "cross-attention"]) == "cross-attention"
    assert nearest("xyz", ["lora", "dora"]) is None


def test_an_error_reads_as_what_happened_and_what_to_do():
    assert str(StudioError("It broke.", "Mend it.")) == "It broke.\nMend it."
    assert str(StudioError("It broke.")) == "It broke."


@pytest.mark.parametrize("error", [StudioError("a", "b"), UserInputError("a"), UnknownNameError("knob", "a", ["b"])])
def test_errors_cross_process_borders(error: StudioError):
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.exit_code) == (str(error), error.exit_code)


@pytest.mark.parametrize(
    ("method", "knobs", "said"),
    [
        ("lorra", {}, "'lorra'.\nDid you mean 'lora'?"),
        ("lora", {"ranck": 3}, "'ranck'.\nDid you mean 'rank'?"),
        ("lora", {"rank": 0}, "rank = 0"),
        ("lora", {"rank": 10**9}, "rank = 1000000000"),
        ("lora", {"rank": "many"}, "rank = 'many'"),
        ("lora", {"dropout": 1.0}, "dropout = 1.0"),
        ("lora", {"alpha": math.inf}, "alpha = inf"),
    ],
)
def test_a_bad_spec_is_named_with_the_nearest_or_the_reason(method: str, knobs: dict[str, object], said: str):
    with pytest.raises(UserInputError) as caught:
        parse_spec({"method": method, **knobs})
    assert said in str(caught.value)
    assert caught.value.fix


def test_a_spec_without_a_method_is_refused():
    with pytest.raises(UserInputError, match="needs a method"):
        parse_spec({"rank": 3})


def test_a_spec_survives_json_and_cannot_be_changed():
    spec = make_spec("dora", rank=8, rank_stabilized=True)
    assert parse_spec(spec.model_dump(mode="json")) == spec
    with pytest.raises(ValidationError):
        spec.rank = 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spec", "scale"),
    [
        (LoraSpec(rank=16), 1.0),
        (LoraSpec(rank=16, alpha=8), 0.5),
        (LoraSpec(rank=16, alpha=8, rank_stabilized=True), 2.0),
        (LoraSpec(rank=16, rank_stabilized=True), 4.0),
    ],
    ids=str,
)
def test_the_scale_is_alpha_over_rank_or_over_its_root(spec: LowRankSpec, scale: float):
    assert spec.scale == scale


def test_every_method_and_knob_describes_itself():
    for name, method in REGISTRY.items():
        assert method.title and method.paper and method.equation, name
        for knob, field in method.spec_type.model_fields.items():
            assert knob == "method" or field.description, f"{name}.{knob}"


def test_a_method_that_says_nothing_of_itself_is_not_registered():
    with pytest.raises(TypeError, match="title, paper, equation"):
        type("Silent", (Adapter,), {}, spec=LoraSpec)


def test_two_methods_cannot_share_a_name():
    described = {"title": "", "paper": "", "equation": ""}
    with pytest.raises(TypeError, match="two methods"):
        type("Twin", (Adapter,), described, spec=LoraSpec)
