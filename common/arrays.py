"""The type of a model's tensors."""

import numpy as np

# Name of a parameter -> its values, in the order in which they travel.
Arrays = dict[str, np.ndarray]
