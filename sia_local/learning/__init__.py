"""A Q-head from what a teacher says at junctions: data, training, report. Only `collect` imports what generates."""
