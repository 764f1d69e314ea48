"""Archives: tag files of any size with several processes, each row exactly once, resumable."""
