"""`python -m rosepo`."""

from rosepo.cli.app import main

main()
