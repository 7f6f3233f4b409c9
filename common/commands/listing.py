"""The tables of `bract list`, with one row for each name."""

from common.data.sources.registry import describe_sources
from common.strategies import STRATEGIES

BACKBONES_HINT = "model.backbone; weights come from the package, from model.weights, or from the hub"
PARTITIONERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "iid": ("equal shares, drawn at random", ()),
    "dirichlet": ("class shares from a Dirichlet distribution: small alpha, few classes a client", ("alpha",)),
    "pathological": ("a fixed number of classes a client; may leave images unused", ("classes-per-client",)),
    "shards": ("sorted by class and cut into shards; may leave images unused", ("shards-per-client",)),
    "size-skew": ("clients of very different sizes, same mix of classes", ("size-skew",)),
    "natural": ("the clients that the source itself names: column client of a manifest", ()),
}

Row = tuple[str | list[str], ...]
Table = tuple[str, tuple[str, ...], list[Row]]


def list_backbones() -> Table:
    """Return title, column names and rows of the backbones."""
    from common.models.names import known_backbones

    return f"Backbones ({BACKBONES_HINT})", ("name", "what it is", "weights"), list(known_backbones())


def list_sources() -> Table:
    """Return title, column names and rows of the sources of images."""
    return "Sources of images (data.source)", ("name", "what it is"), list(describe_sources())


def list_strategies() -> Table:
    """Return title, column names and rows of the strategies and their settings."""
    known = {
        name: (row.summary, tuple(key.replace("_", "-") for key in row.parameters)) for name, row in STRATEGIES.items()
    }
    title = "Strategies (strategy.name), all Flower's own; a setting left open keeps Flower's default"
    return title, ("name", "what it does", "settings"), _rows(known, "strategy")


def list_partitioners() -> Table:
    """Return title, column names and rows of the partitioners and their settings."""
    title = "Partitioners (data.partitioner); all follow data.min-client-size and the seed, except natural"
    return title, ("name", "what it does", "settings"), _rows(PARTITIONERS, "data")


def _rows(known: dict[str, tuple[str, tuple[str, ...]]], section: str) -> list[Row]:
    return [(name, text, [f"{section}.{key}" for key in keys]) for name, (text, keys) in known.items()]
