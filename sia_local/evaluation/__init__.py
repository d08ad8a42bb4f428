"""Quality: arms over prompts, samples on disk, metrics, and the report."""
