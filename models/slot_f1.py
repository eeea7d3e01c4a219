"""Slot F1, the measure of a slot tagger, by the definition of the CoNLL-2000 shared task.

Tjong Kim Sang, Buchholz: Introduction to the CoNLL-2000 Shared Task: Chunking, 2000, and its
evaluation script `conlleval`, which seqeval follows.

Dimensions: B sentences, L tokens.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def slot_f1(true_tags: Sequence[Sequence[str]], predicted_tags: Sequence[Sequence[str]]) -> float:
    """F1 over whole slots: a predicted slot counts if its type and both its ends are right.

    A slot starts at a `B-` tag, and also at an `I-` tag that follows `O`, a slot of another type,
    or the start of the sentence. Pass the true tags as they stand in the data, names that a tagger
    has never seen included: their slots count as missed.

    Args:
        true_tags: the tags of each sentence, `O`, `B-TYPE` or `I-TYPE`.
        predicted_tags: the same for the predictions; as many sentences, each as long.

    Returns:
        Harmonic mean of precision and recall, in [0, 1]; 0 if no slot is right.

    Raises:
        ValueError: the two differ in shape, or a tag is none of the above.

    >>> slot_f1([["B-city", "I-city", "O", "B-day"]], [["B-city", "I-city", "O", "O"]])
    0.6666666666666666
    """
    # Imported late: it brings in scikit-learn and SciPy, which take seconds to load.
    from seqeval.metrics import f1_score

    if len(true_tags) != len(predicted_tags):
        raise ValueError(
            f"predicted_tags holds {len(predicted_tags)} sentences, "
            f"expected {len(true_tags)}, as in true_tags"
        )
    for i, (truth, prediction) in enumerate(zip(true_tags, predicted_tags, strict=True)):
        if len(truth) != len(prediction):
            raise ValueError(
                f"predicted_tags[{i}] holds {len(prediction)} tags, "
                f"expected {len(truth)}, as in true_tags[{i}]"
            )
    for name, sentences in (("true_tags", true_tags), ("predicted_tags", predicted_tags)):
        for tag in {tag for sentence in sentences for tag in sentence}:
            if tag != "O" and not tag.startswith(("B-", "I-")):
                raise ValueError(f"{name} holds {tag!r}, expected O, B-TYPE or I-TYPE")

    if not true_tags:
        return 0.0  # seqeval refuses it
    return float(
        f1_score(
            [list(sentence) for sentence in true_tags],
            [list(sentence) for sentence in predicted_tags],
            zero_division=0,
        )
    )


def decode_tags(
    tag_ids_BxL: npt.ArrayLike, lengths_B: npt.ArrayLike, tag_names: Sequence[str]
) -> list[list[str]]:
    """Turns padded tag ids into the tag names of each sentence.

    Args:
        tag_ids_BxL: integers in [0, len(tag_names)); padding may hold anything.
        lengths_B: number of tokens of each sentence, integers.
        tag_names: name of each id.

    Returns:
        One list of names per sentence, as long as the sentence.

    Raises:
        ValueError: the id of a token has no name.
    """
    sentences = []
    for ids_L, length in zip(np.asarray(tag_ids_BxL), np.asarray(lengths_B), strict=True):
        ids = ids_L[:length].tolist()
        if ids and not 0 <= min(ids) <= max(ids) < len(tag_names):
            raise ValueError(
                f"tag_ids_BxL holds ids from {min(ids)} to {max(ids)}, "
                f"expected 0 to {len(tag_names) - 1}"
            )
        sentences.append([tag_names[i] for i in ids])
    return sentences
