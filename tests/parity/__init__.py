"""Comparison with torch and transformers, for environments that have them; skipped elsewhere."""
