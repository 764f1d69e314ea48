"""What the engine is measured against, each as users would run it."""
