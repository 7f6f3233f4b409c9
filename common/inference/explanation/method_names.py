"""Names of the methods of explanation, read without torch."""

from typing import Literal

Method = Literal["grad-cam", "integrated-gradients", "occlusion"]
MethodChoice = Literal["auto", "grad-cam", "integrated-gradients", "occlusion"]
