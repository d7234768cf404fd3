"""Measured results that come with attnc: one bundle a kind of hardware, named by it."""
