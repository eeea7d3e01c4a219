"""The slot F1 score, against conlleval's rules."""

import subprocess
import sys

import pytest

from models import decode_tags, slot_f1


def f1(*, correct, true, predicted):
    """F1 from counts of slots, as conlleval prints it."""
    return 2 * correct / (true + predicted)


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        pytest.param("B-a I-a O B-b", "B-a I-a O B-b", 1.0, id="all right"),
        pytest.param("B-a I-a O B-b", "O O O O", 0.0, id="none predicted"),
        pytest.param("O O", "O B-a", 0.0, id="none true"),
        pytest.param("O O", "O O", 0.0, id="no slot at all"),
        pytest.param("B-a I-a", "B-a O", 0.0, id="right type, wrong end"),
        pytest.param("B-a I-a", "B-b I-b", 0.0, id="right ends, wrong type"),
        pytest.param("O B-a I-a", "O I-a I-a", 1.0, id="I- after O starts a slot"),
        pytest.param("B-a I-a", "I-a I-a", 1.0, id="I- at the start of a sentence starts a slot"),
        pytest.param("B-a B-b", "B-a I-b", 1.0, id="I- of another type starts a slot"),
        pytest.param(
            "B-a I-a I-a", "B-a I-b I-a", f1(correct=0, true=1, predicted=3), id="type splits"
        ),
        pytest.param("B-a B-a", "B-a I-a", f1(correct=0, true=2, predicted=1), id="B- splits"),
        pytest.param(
            "B-a I-a O B-b O B-a",
            "B-a I-a O B-a O B-a",
            f1(correct=2, true=3, predicted=3),
            id="micro average over types",
        ),
        pytest.param(
            "B-never-seen O B-a", "B-a O B-a", f1(correct=1, true=2, predicted=2), id="unseen type"
        ),
        pytest.param(
            "B-x.city_name I-x.city_name", "B-y.city_name I-y.city_name", 0.0, id="dotted types"
        ),
    ],
)
def test_slot_f1_follows_conlleval(true, predicted, expected):
    assert slot_f1([true.split()], [predicted.split()]) == pytest.approx(expected, abs=1e-12)


def test_slots_do_not_cross_sentences():
    assert slot_f1([["O", "B-a"], ["I-a"]], [["O", "B-a"], ["B-a"]]) == 1.0


@pytest.mark.parametrize("nothing", [[], [[]]])
def test_no_token_scores_zero(nothing):
    assert slot_f1(nothing, nothing) == 0.0


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        ([["O"]], [["O"], ["O"]], "predicted_tags holds 2 sentences, expected 1"),
        ([["O"], ["O"]], [["O"], []], r"predicted_tags\[1\] holds 0 tags, expected 1"),
        ([["O"]], [["city"]], "predicted_tags holds 'city', expected O, B-TYPE or I-TYPE"),
    ],
)
def test_bad_tags_raise(true, predicted, message):
    with pytest.raises(ValueError, match=message):
        slot_f1(true, predicted)


def test_decode_tags_leaves_padding_out():
    assert decode_tags([[0, 1, 99], [1, -1, -1], [7, 7, 7]], [2, 1, 0], ["O", "B-a"]) == [
        ["O", "B-a"],
        ["B-a"],
        [],
    ]


@pytest.mark.parametrize("bad_id", [-1, 2])
def test_decode_tags_rejects_an_id_without_name(bad_id):
    with pytest.raises(ValueError, match=f"tag_ids_BxL holds ids .*{bad_id}.* expected 0 to 1"):
        decode_tags([[0, bad_id]], [2], ["O", "B-a"])


def test_importing_models_leaves_scikit_learn_out():
    code = "import models, sys; sys.exit('sklearn' in sys.modules or 'seqeval' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
