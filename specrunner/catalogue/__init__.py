"""What specs can name: engines, recipes of checkpoints, benchmark tasks. Nothing of it is imported to be listed."""
