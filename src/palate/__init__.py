"""Palate aligns generative models with what people prefer."""

__version__ = "0.1.0"
