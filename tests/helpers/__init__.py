"""What several tests share: denoisers, networks, checkpoints, case tables and comparisons."""
