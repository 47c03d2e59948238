"""`python -m rosepo`."""

from rosepo.cli import main

main()
