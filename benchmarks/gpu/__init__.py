"""Proofs on one GPU: `right` (numbers agree), `learn` (a real model improves), `speed` (where the time goes)."""
