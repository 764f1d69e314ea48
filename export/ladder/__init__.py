"""Low-precision variants for CPUs: made, calibrated, and admitted by what they change."""
