"""From published measurements to coefficients: `python bench/calibrate.py`. The only part that needs numpy."""

from edgedistill.predict.calibrate.run import calibrate

__all__ = ["calibrate"]
