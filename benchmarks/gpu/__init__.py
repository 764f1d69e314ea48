"""What is run and measured on an NVIDIA GPU."""
