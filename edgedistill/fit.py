"""Fit a teacher to the task before it teaches: a linear head on its embedding, then, if asked, every weight.

The default profile asks for the head only: on BANKING77 tuning the teacher's upper layers was worth 0.5 points to the
teacher and nothing to the student, for five times the time (`bench/results/recipe_exploration.md`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from edgedistill import record, training
from edgedistill.data import Splits
from edgedistill.specs import FitSpec, Progress
from edgedistill.tasks import text_classification as task
from edgedistill.teachers._network import TeacherNetwork, width_of


def fit_network(
    body: nn.Module,
    tokenizer: Tokenizer,
    splits: Splits,
    fit: FitSpec,
    max_length: int,
    seed: int,
    folder: Path,
    progress: Progress,
) -> TeacherNetwork:
    """The teacher with a head for the task's labels, in eval mode; with `none` the body as it came."""
    if fit.method == "none":
        return TeacherNetwork(body, None).eval()
    sequences = task.encode(tokenizer, [row.text for row in splits.train], max_length)
    labels = torch.tensor(task.class_ids([row.label for row in splits.train], splits.labels))
    pad = task.pad_id(tokenizer)
    progress.begin("teacher", len(sequences), "row")
    head = nn.Linear(width_of(body), len(splits.labels))
    network = TeacherNetwork(body, head)
    pooled = record.answers(network, sequences, lambda batch: task.collate(batch, pad), progress).pooled
    weight, bias = fit_head(pooled, labels, len(splits.labels), fit.head_l2)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    if fit.method == "finetune":
        _finetune(network, sequences, labels, pad, fit, seed, folder, progress)
    return network.eval()


def fit_head(
    pooled: Float[Tensor, "rows width"], labels: Int[Tensor, " rows"], classes: int, l2: float
) -> tuple[Float[Tensor, "classes width"], Float[Tensor, " classes"]]:
    """Multinomial logistic regression with an L2 penalty on the weights, by L-BFGS: convex, so there is one answer."""
    weight = torch.zeros(classes, pooled.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=150, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(pooled @ weight.T + bias, labels) + 0.5 * l2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _finetune(
    network: TeacherNetwork,
    sequences: list[list[int]],
    labels: Int[Tensor, " rows"],
    pad: int,
    fit: FitSpec,
    seed: int,
    folder: Path,
    progress: Progress,
) -> None:
    """Train head and body on the labels, in place."""
    per_epoch = -(-len(sequences) // fit.batch_size)

    def objective(step: int) -> Tensor:
        epoch, position = divmod(step, per_epoch)
        order = torch.randperm(len(sequences), generator=training.generator(seed, 0, epoch))
        rows = order[position * fit.batch_size : (position + 1) * fit.batch_size]
        # dropout draws from torch's global generator, which a continued run must find as an uncut one does
        torch.manual_seed(training.generator(seed, 1, step).initial_seed())
        logits = network(*task.collate([sequences[int(row)] for row in rows], pad)).logits
        return cross_entropy(logits, labels[rows])

    recipe = training.Recipe(
        steps=fit.epochs * per_epoch,
        learning_rate=fit.learning_rate,
        schedule="linear",
        weight_decay=fit.weight_decay,
        gradient_clip=1.0,
    )
    training.train(network, objective, recipe, folder, progress)
