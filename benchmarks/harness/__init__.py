"""How systems are measured: worker processes, interleaved timing, statistics, the machine."""
