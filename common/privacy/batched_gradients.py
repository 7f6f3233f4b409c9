"""Words about per-example gradients that are computed in batches.

A batched product rounds an image's gradient by the shape of its batch. So one unit that joins can change the rounding
of the others, which no bound on its own gradient covers.
"""

from typing import Final

# Values of `training.gradients`.
AUTO: Final = "auto"
OPACUS: Final = "opacus"
# What a statement says of the gradients, and at the end of its sentence.
IN_WORDS = "by Opacus, in batches: a unit can change the rounding of the others' gradients"
NOT_COVERED = "; the ROUNDING of gradients in batches (Opacus) is not covered"
# What an observer may learn in spite of the mechanism.
GAP = (
    "what the rounding of batched gradients (training.gradients='opacus') tells of a unit: epsilon leaves it out, and "
    "a server can choose weights that make it larger than the clip bound"
)
# Note in a client's ledger. It is stored, so it stays as it is.
NOTE = "gradients in batches by Opacus: no epsilon covers their rounding"
