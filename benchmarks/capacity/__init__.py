"""How many machines a traffic needs, simulated from measured costs and checked against servers."""
