"""Lookalike: images that look alike share a label.

What the web process and the workers agree on: records, settings, errors, the ledger, the queue's names, the Label
Studio client and its wire format.
"""

__version__ = "0.1.0"
