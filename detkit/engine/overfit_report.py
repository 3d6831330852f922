"""What an attempt to learn a few images by heart says, in a table and in plain English."""

from __future__ import annotations

from detkit.engine.overfit import Overfitting

LEARNED = 0.5  # AP50 on the images themselves from which the detector learns
CONFUSED = 0.75  # AP50 below this part of that of the boxes alone: the classes are confused
FALLS = 0.9  # a loss falls if it ends below this part of what it was
KINDS = {"class": "class scores", "object": "objectness", "background": "objectness"}  # by a word in a loss's name


def describe_overfitting(result: Overfitting) -> str:
    """The losses and gradients before and after, the scores, and the verdict."""
    width = max(map(len, ["gradient of", *result.losses, *result.gradients]))
    losses = {**result.losses, "sum": total_losses(result)}
    lines = [
        f"{result.num_images} images with {result.num_objects} objects, {result.steps} steps of batch "
        f"{result.batch_size} at the learning rate {result.lr:g}",
        "",
        f"{'loss':{width}}   at first   at last",
        *(f"{name:{width}} {first:10.4f} {last:9.4f}" for name, (first, last) in losses.items()),
        "",
        f"{'gradient of':{width}}   at first   at last",
        *(
            f"{part:{width}} {norms[0]:10.4g} {norms[1]:9.4g}" if norms else f"{part:{width}}     frozen"
            for part, norms in result.gradients.items()
        ),
        "",
        f"AP50 {result.ap50:.3f}; whatever the class: AP50 of the boxes {result.box_ap50:.3f}, objects found "
        f"{result.box_recall:.3f}; {result.num_detections} detections",
        "",
        verdict(result),
        *untrained_parts(result),
    ]
    return "\n".join(lines)


def verdict(result: Overfitting) -> str:
    """Whether the detector learns, else what does not, and what to try."""
    if result.box_ap50 >= LEARNED and result.ap50 < CONFUSED * result.box_ap50:
        return (
            "the class scores do not learn: boxes are found, but under wrong names; look at the labels of the data, "
            "and at train.class_weights"
        )
    if result.ap50 >= LEARNED:
        return f"learns: AP50 {result.ap50:.2f} on the images that it was trained on"
    first, last = total_losses(result)
    if last > FALLS * first:
        return (
            f"does not learn: the losses do not fall ({first:.3g} at first, {last:.3g} at last); try another "
            f"train.optimizer.lr than {result.lr:g}, ten times as much if they stand still"
        )
    if not result.num_detections:
        return (
            "nothing is detected yet, though the losses fall: no score is above selection.score_threshold; give it "
            "more --minutes"
        )
    stuck = _stuck_kinds(result)
    begun = f"the {' and the '.join(stuck)} do not learn" if stuck else "it has begun to learn"
    return (
        f"{begun}: the losses fall, but AP50 is {result.ap50:.2f} after {result.steps} steps; give it more --minutes "
        "or a smaller input"
    )


def untrained_parts(result: Overfitting) -> list[str]:
    """A line on the parts that are frozen, and one on those that no gradient reaches, if there are any."""
    frozen = [part for part, norms in result.gradients.items() if norms is None]
    idle = [part for part, norms in result.gradients.items() if norms is not None and max(norms) == 0]
    lines = []
    if frozen:
        lines.append(f"does not learn because it is frozen: {', '.join(frozen)}")
    if idle:
        lines.append(f"does not learn because no gradient reaches it: {', '.join(idle)}")
    return lines


def total_losses(result: Overfitting) -> tuple[float, float]:
    """The sum of all losses before and after."""
    return sum(first for first, _ in result.losses.values()), sum(last for _, last in result.losses.values())


def _stuck_kinds(result: Overfitting) -> list[str]:
    """Class scores, objectness and boxes, as far as the losses of them do not fall.

    That of the boxes may rise while all is well: a region head gets more regions to learn from. Then objects are found.
    """
    sums: dict[str, tuple[float, float]] = {}
    for name, (first, last) in result.losses.items():
        kind = next((kind for word, kind in KINDS.items() if word in name), "boxes")
        before, after = sums.get(kind, (0.0, 0.0))
        sums[kind] = before + first, after + last
    stuck = [kind for kind, (first, last) in sums.items() if last > FALLS * first]
    return [kind for kind in stuck if kind != "boxes" or result.box_recall < LEARNED]
