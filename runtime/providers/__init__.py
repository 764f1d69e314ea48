"""Engine libraries behind one small protocol."""
