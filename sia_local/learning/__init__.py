"""A Q-head from what a teacher says at junctions: data, training, report. Few modules import what generates."""
