"""Common part of the mechanisms whose clients add the noise themselves."""

from common.privacy.mechanisms.contract import ALWAYS_VISIBLE, Mechanism


class NoiseAtClient(Mechanism):
    """Common part of the mechanisms whose clients add the noise themselves."""

    noise_at_client = True
    units = ("image", "group")
    metrics = ("private", "exact", "none")
    trust = "each client adds its own noise"
    trust_warning = ""
    noise_place = "noise added at its own client"
    noise_place_short = "each client"

    def ledger_text(self, *, simulated: bool, kept: str) -> str:
        """Return where charges are kept, as the privacy statement says it."""
        if simulated:
            return f"simulated ({kept}): one a client, in this run's folder; a new run starts new budgets"
        return "each client's own; only its signed heads are known here"

    def not_protected(self, *, num_clients: int, num_unpinned: int) -> tuple[str, ...]:
        """Return what an observer may learn in spite of the mechanism."""
        code = (
            f"anything, against a server that changes the code clients run: {num_unpinned} of {num_clients} clients "
            "have not pinned it, and trust the server's code"
        )
        return (
            *ALWAYS_VISIBLE,
            "images that another client also holds: epsilon is per client",
            "an image that was edited or re-encoded, or that another machine holds: it counts as a new one",
            *((code,) if num_unpinned else ()),
        )
