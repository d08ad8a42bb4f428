"""A row of logits becomes a distribution: entropy, gates, tilt, choice. Imports numpy and the configuration only."""
