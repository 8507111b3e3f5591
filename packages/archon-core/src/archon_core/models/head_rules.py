"""Weight rules of a decoder's head under the names that transformers gives to all families."""

from __future__ import annotations

from archon_core.models.weight_rules import Drop, Rename, Tie


def head_rules(*, tied: bool, critic: bool, tied_in_files: bool) -> list[Rename | Tie | Drop]:
    """The rules of ``head.weight``.

    Args:
        tied: whether the head uses the embedding's weight.
        critic: whether it is a value head, which starts at random from a language model's checkpoint.
        tied_in_files: whether the checkpoint's language-model head is its embedding, even if a value head replaces it.
    """
    if critic:
        same_as = "embed.weight" if tied_in_files else None
        return [Rename("score.weight", "head.weight", init_if_missing=True), Drop("lm_head.weight", same_as=same_as)]
    if tied:
        return [Tie("head.weight", to="embed.weight", hf="lm_head.weight")]
    return [Rename("lm_head.weight", "head.weight")]
