"""A module that a model directory may not bring in: importing it leaves a trace."""

import os
import pathlib

from toy.brightness import Codec

__all__ = ["Codec"]
pathlib.Path(os.environ["TRAP"]).touch()
