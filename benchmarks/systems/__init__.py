"""The engine and what it is measured against, each as users would run it."""
