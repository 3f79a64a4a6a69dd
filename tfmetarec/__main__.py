"""`python -m tfmetarec`: the command line."""

from tfmetarec.cli import main

main()
