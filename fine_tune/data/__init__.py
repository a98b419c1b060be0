"""From a task's files to batches."""
