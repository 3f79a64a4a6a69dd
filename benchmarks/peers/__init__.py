"""How others would write one MAML step: the peers that `tfmetarec` is timed against, none of which imports it."""
