"""The processes: one package for each role, the packages that roles share, and the command line."""
