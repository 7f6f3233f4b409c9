"""The tables of `bract list`, with one row for each name."""

from common.data.sources.registry import describe_sources

BACKBONES_HINT = "model.backbone; weights come from the package, from model.weights, or from the hub"
STRATEGIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "FedAvg": ("the average of the clients' models", ()),
    "FedAvgM": ("averaging with momentum at the server", ("server-learning-rate", "server-momentum")),
    "FedProx": ("averaging; a term holds clients near the global model", ("proximal-mu",)),
    "FedAdam": ("Adam at the server on the averaged update", ("server-learning-rate", "tau", "beta-1", "beta-2")),
    "FedYogi": ("Yogi at the server on the averaged update", ("server-learning-rate", "tau", "beta-1", "beta-2")),
    "FedAdagrad": ("Adagrad at the server on the averaged update", ("server-learning-rate", "tau")),
    "FedMedian": ("the median of each value over clients", ()),
    "FedTrimmedAvg": ("the average of each value without its extremes", ("trim-fraction",)),
    "Krum": ("the one model nearest to its neighbours", ("num-malicious",)),
    "MultiKrum": ("the average of the models Krum likes best", ("num-malicious", "num-selected")),
    "Bulyan": ("Krum's choice, then trimmed value by value", ("num-malicious",)),
    "QFedAvg": ("clients with a higher loss weigh more; privacy.mechanism=none only", ("q",)),
}
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
    title = "Strategies (strategy.name), all Flower's own; an empty setting keeps Flower's default"
    return title, ("name", "what it does", "settings"), _rows(STRATEGIES, "strategy")


def list_partitioners() -> Table:
    """Return title, column names and rows of the partitioners and their settings."""
    title = "Partitioners (data.partitioner); all follow data.min-client-size and the seed, except natural"
    return title, ("name", "what it does", "settings"), _rows(PARTITIONERS, "data")


def _rows(known: dict[str, tuple[str, tuple[str, ...]]], section: str) -> list[Row]:
    return [(name, text, [f"{section}.{key}" for key in keys]) for name, (text, keys) in known.items()]
