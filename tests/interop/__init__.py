"""Our package and the released taskiq, each a client of the other's worker."""
