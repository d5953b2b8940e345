"""Nightly bulk text classification on Ray.

Importing this package loads neither ray nor torch; each command loads what it needs.
"""

__version__ = "0.1.0"
