"""Gaps in a guarantee, graded by what they mean for a single image."""

from dataclasses import dataclass
from typing import Literal

Grade = Literal["critical", "theoretical", "negligible"]

# Grade -> its meaning, from the worst to the least.
GRADES: dict[Grade, str] = {
    "critical": "whoever uses it can learn about single images, whatever epsilon says",
    "theoretical": "it weakens the bound for some images, or nothing bounds what it tells",
    "negligible": "it is agreed as public before the run, and tells little about a single image",
}


@dataclass(frozen=True)
class Gap:
    """Grade of a gap with its meaning in plain words."""

    grade: Grade
    meaning: str


# Beginning of a gap as statements name it -> its grade. Statements are stored, so a beginning must stay.
_GAPS = {
    "how many units each client declares": Gap(
        "negligible", "It says how large a client is, and not who is among its images."
    ),
    "which clients took part": Gap("negligible", "The server asks each client by name, so it knows whom it asked."),
    "the list of class names": Gap("negligible", "All clients agree on the classes before the run."),
    "the list of subgroups": Gap("negligible", "All clients agree on the names before the run."),
    "the time each client took": Gap("theoretical", "Durations are not sent, but the network shows when a reply came."),
    "images that another client also holds": Gap(
        "theoretical", "Epsilon counts one client. Somebody with images at two clients pays at both of them."
    ),
    "an image that was edited": Gap(
        "theoretical", "A changed copy is a new image to the ledger, so its cost is counted apart from the original's."
    ),
    "anything, against a server that changes the code": Gap(
        "critical",
        "Other code could send the images themselves. A client closes this by pinning code that it has read.",
    ),
    "anything, against the server": Gap(
        "critical", "The server gets each client's update without noise, so it must be honest and stay unhacked."
    ),
    "held-out images: their exact counts": Gap(
        "critical", "The counts of held-out images carry no noise, so epsilon says nothing about these images."
    ),
    "each client's exact update": Gap(
        "critical",
        "Whoever sees an update can test whether an image took part, and rebuild some images in part. "
        "`bract audit membership` and `bract audit inversion` measure how well.",
    ),
    "exact sums of updates and counts": Gap(
        "critical",
        "A sum over few clients carries no noise. Whoever sees it, and the model, can test whether an image took part.",
    ),
    "each sum: a value that one client alone": Gap(
        "critical", "Where one client alone has a class, the sum's row for this class is that client's own update."
    ),
    "more than `if_all_others_collude` says": Gap(
        "theoretical",
        "Epsilon counts the noise of several honest clients on the roster. With fewer of them the second figure holds.",
    ),
    "a client whose roster came from the server": Gap(
        "critical", "The server could have put clients of its own on the roster, and they count as colluding ones."
    ),
    "backups of a client's file of mask secrets": Gap(
        "theoretical", "Together with what the server received, such a backup opens what the client masked."
    ),
    "what the rounding of batched gradients": Gap(
        "theoretical",
        "An honest server's weights change a gradient by a millionth. A hostile one's can change it by more than the "
        "clip bound, and no epsilon covers that.",
    ),
    "exact counts of held-out images": Gap(
        "critical", "Counts over few images tell how the model did on single ones of them."
    ),
}
# Gaps of a run without a mechanism, whose statement lists none.
NOT_PRIVATE = ("each client's exact update", "exact counts of held-out images", "how many units each client declares")
NOT_PRIVATE_SUMS = ("exact sums of updates and counts",)


def gap_of(stated: str) -> Gap | None:
    """Return the grade of a gap that a statement names.

    None stands for a gap of another version.

    >>> gap_of("the list of class names").grade
    'negligible'
    """
    # The longest beginning decides: two gaps begin with "anything, against".
    fitting = [beginning for beginning in _GAPS if stated.startswith(beginning)]
    return _GAPS[max(fitting, key=len)] if fitting else None
