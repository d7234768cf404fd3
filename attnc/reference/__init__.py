"""The reference: eager torch straight from a program. It is the oracle that every kernel is compared with."""

from attnc.reference.evaluate import evaluate

__all__ = ["evaluate"]
