"""Which way of distilling goes with which access to the teacher, and what a profile asks that it cannot give."""

from __future__ import annotations

from typing import NamedTuple

from edgedistill.errors import SpecError
from edgedistill.plan.check import teacher_outputs
from edgedistill.specs import Profile

# What each kind of teacher source lets a build see.
GIVES = {"package": ("logits", "pooled"), "folder": ("logits", "pooled"), "hub": ("logits", "pooled")}
FEW_ROWS = 2000  # below this a transfer set of made-up texts is worth more than another loss


class Method(NamedTuple):
    """A way of distilling: its name, the losses it is made of (files in losses/), and why."""

    name: str
    losses: tuple[str, ...]
    why: str


def recommend(gives: tuple[str, ...], *, generates: bool = False, same_tokenizer: bool = True, rows: int = 0) -> Method:
    """The method for a teacher that gives these outputs ("logits", "pooled", "text").

    `generates`: the task is to write text, not to tell classes; `same_tokenizer` matters only there, as logits of
    different vocabularies cannot be compared position by position. `rows` of 0: not known.

    Raises:
        SpecError: the teacher gives nothing.
    """
    few = " With so few rows, set data.transfer_factor: the teacher answers on made-up texts too." * (
        0 < rows < FEW_ROWS
    )
    if generates and "logits" in gives and same_tokenizer:
        return Method(
            "white-box, on the student's own text",
            ("reverse_kl",),
            "a small student cannot cover all a large teacher says: reverse KL on text that the student writes makes it"
            " take the main way (Gu et al. 2023, MiniLLM; Agarwal et al. 2023, GKD)",
        )
    if "logits" in gives and not generates:
        hidden = ("pooled_cosine",) if "pooled" in gives else ()
        why = "the teacher's probabilities say which wrong answers are near (Hinton et al. 2015)"
        why += ", its embeddings what texts have in common" if hidden else ""
        return Method("white-box", ("soft_kl", "cross_entropy", *hidden), f"{why}.{few}")
    if "text" in gives or "logits" in gives:
        loss = "cross_entropy" if generates else "hard_pseudo_label"
        why = (
            "the vocabularies differ, so only what the teacher writes can be learned"
            if "logits" in gives
            else "only answers come out of the teacher, no probabilities: they are taken as labels"
        )
        return Method("black-box", (loss,), f"{why} (Kim and Rush 2016).{few}")
    raise SpecError("this teacher gives neither logits nor text: nothing can be learned from it.")


def method_notes(profile: Profile, rows: int | None) -> list[str]:
    """What to know about the profile's losses and its teacher's access.

    Raises:
        SpecError: a loss asks for something that no source of the teacher gives.
    """
    kinds = {source.kind for source in profile.teacher.sources}
    gives = tuple(sorted({output for kind in kinds for output in GIVES.get(kind, ())}))
    asked = teacher_outputs(tuple(term for stage in profile.stages for term in stage.losses))
    lacking = sorted(set(asked) - set(gives))
    if gives and lacking:
        raise SpecError(
            f"profile {profile.name!r}: its losses ask the teacher for {', '.join(lacking)}, and a teacher from "
            f"{', '.join(sorted(kinds))} gives {', '.join(gives)}."
        )
    if not gives:
        return []
    best = recommend(gives, rows=rows or 0)
    used = {term.loss for stage in profile.stages for term in stage.losses if term.weight}
    missing = [name for name in best.losses if name not in used]
    kept = f"{best.name} distillation, as the teacher gives {', '.join(gives)}: {best.why}"
    return [kept + (f" This profile leaves out {', '.join(missing)}." if missing else "")]
