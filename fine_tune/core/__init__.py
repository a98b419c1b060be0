"""What every room may lean on: files, errors, interruptions. Standard library only."""
