"""rosepo: align language-model recommenders with what users really prefer."""

__version__ = "0.1.0"
