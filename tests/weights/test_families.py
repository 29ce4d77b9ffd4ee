"""Models of other code compute what that code computes, or are refused in one sentence."""

import pytest
from families import NAMES, NEEDS_ARGS, REFUSED, TRANSFORMERS, Case, FromTransformers

TENSORS = [name for name in NAMES if name not in {**REFUSED, **NEEDS_ARGS}]


@pytest.mark.parametrize("name", TENSORS)
def test_a_model_computes_what_its_own_code_computes(name, tmp_path):
    case = Case(name)
    model, params = case.load(case.save(tmp_path, as_pth=False))
    differences = case.differences(model, params)
    assert differences.keys() >= case.arrays.keys() & {"prediction", "features", "logits"}
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.parity
@pytest.mark.parametrize("name", TENSORS)
def test_a_file_says_what_its_arguments_say(name, tmp_path):
    """The model of a whole checkpoint is that of its tensors and of what else is known of them."""
    pytest.importorskip("torch")
    case = Case(name)
    tensors, whole = (case.save(tmp_path, as_pth=as_pth) for as_pth in (False, True))
    assert case.load(whole)[0] == case.load(tensors)[0]


@pytest.mark.parity
@pytest.mark.parametrize("name", NEEDS_ARGS)
def test_the_arguments_of_a_file_are_used(name, tmp_path):
    pytest.importorskip("torch")
    case = Case(name)
    differences = case.differences(*case.load(case.save(tmp_path, as_pth=True)))
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.parametrize("name", {**REFUSED, **NEEDS_ARGS})
def test_a_model_that_is_another_one_is_refused(name, tmp_path):
    case = Case(name)
    path = case.save(tmp_path, as_pth=False)
    with pytest.raises(ValueError, match={**REFUSED, **NEEDS_ARGS}[name]) as caught:
        case.load(path)
    assert "\n" not in str(caught.value)


def test_the_advice_for_a_classifier_by_its_first_patch_ends_well(tmp_path):
    case = Case("videomae_finetuned_first_token")
    model, params = case.load(case.save(tmp_path, as_pth=False), without="head/.*")
    assert model.classes == 0 and "norm" in params["encoder"]


@pytest.mark.parity
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_model_computes_what_transformers_computes(name, tmp_path):
    pytest.importorskip("transformers")
    case = FromTransformers(name)
    differences = case.differences(*case.load(case.save(tmp_path, as_pth=False)))
    assert differences and max(differences.values()) < 1e-5, differences
