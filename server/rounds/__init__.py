"""One round after another, from cohort to aggregated update."""
