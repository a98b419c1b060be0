"""The command line: flags, their parser and checks, and the folders that they name. Without torch."""
