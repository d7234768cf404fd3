"""From syntax tree to typed program: names, kinds, axes, widths; every error of a spec at once."""

from attnc.check.check import check

__all__ = ["check"]
