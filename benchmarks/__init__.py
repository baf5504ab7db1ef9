"""Measurements: speed and proofs, run by hand; not part of the package."""
