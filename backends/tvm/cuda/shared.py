"""What blocks of GPUs have."""

from __future__ import annotations

MOST_SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
"""Bytes of shared memory that one block can have."""
