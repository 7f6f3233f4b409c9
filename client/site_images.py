"""Opening of a client's own images on its holder's terminal."""

from collections.abc import Sequence

from client.client_config import Site
from common.config.listed_values import join_names
from common.config.loading import defaults, override, parse
from common.config.sections import DataConfig
from common.data.sources.base_source import ImageSource
from common.data.sources.registry import open_source


def own_images(site: Site, classes: Sequence[str] = ()) -> tuple[ImageSource, DataConfig]:
    """Return a client's opened images and the settings of their source.

    Raises:
        ConfigError: A field of the client cannot be a setting.
        DataError: The images are missing, or their folders do not look like classes.
    """
    own = {"source": site.source, "path": site.path, "validation": site.validation, "classes": join_names(classes)}
    data = parse(override(defaults(), {f"data.{key}": value for key, value in own.items()})).data
    return open_source(data), data
