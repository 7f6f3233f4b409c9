"""Parts of a data set and their use for training or testing."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.data.folders.layout import Part, Validation, part_of
from common.data.folders.unread import HELD_OUT

_MAX_SHOWN = 5


@dataclass(frozen=True)
class Division:
    """Names of a data set's parts by their use, in the data set's order.

    Attributes:
        train: Parts to train on.
        test: Parts of the data set's own test set.
        left_out: Parts that are not used.
        fault: Why the parts cannot be used; empty if they can.
    """

    train: tuple[str, ...]
    test: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    fault: str = ""

    @property
    def not_read(self) -> tuple[str, ...]:
        """A phrase on each part that is not used."""
        use = f"{'' if self.test else HELD_OUT} (data.validation=train or test uses it)"
        return tuple(f"the part {name}{use if kind_of(name) == 'val' else ''}" for name in self.left_out)


def kind_of(name: str) -> Part | None:
    """Return the kind of a part by its whole name, in any case.

    >>> kind_of("Training"), kind_of("dev"), kind_of("train_extra"), kind_of("unsupervised")
    ('train', 'val', None, None)
    """
    kind, rest = part_of(name)
    return None if rest else kind


def divide(names: Sequence[str], validation: Validation, title: str) -> Division:
    """Divide the parts of a data set by their names, as `data.validation` says.

    A part that is alone is for training, whatever its name.
    """
    if len(names) == 1:
        return Division(tuple(names))
    use = {"train": "train", "test": "test", "val": validation}
    sides = {name: use.get(kind_of(name) or "", "drop") for name in names}
    train, test, left = (tuple(name for name in names if sides[name] == side) for side in ("train", "test", "drop"))
    fault = f"{title} has the parts {', '.join(names)}: one must be called train"
    return Division(train, test, left, "" if not names or any(kind_of(name) == "train" for name in train) else fault)


def on_both_sides(units: Sequence[str], num_train: int, column: str, title: str, advice: str) -> str:
    """Return a refusal of units in both parts, empty if there are none."""
    # Images of a unit that the model has seen would make its figures too good.
    both = sorted(set(units[:num_train]) & set(units[num_train:]) - {""})
    if not both:
        return ""
    return (
        f"{title}: the same {column} has rows in train and in test: "
        f"{', '.join(both[:_MAX_SHOWN])} ({len(both)} in all)\n  {advice}"
    )
