"""Attacks on trained models: gradient steps, random search, an ensemble of them, and changes that are no attack."""
