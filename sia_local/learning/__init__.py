"""A Q-head from what a teacher says at junctions: data, training, report. Imports numpy, values.qhead and no llama."""
