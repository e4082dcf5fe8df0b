"""What the notebooks lean on: a set-up cell, checks with hints, the real model to build into."""

from minisd.teach.checks import Result, check
from minisd.teach.results import train_or_load
from minisd.teach.session import Session, setup
from minisd.teach.source import show_source
from minisd.teach.swapping import Swap, swap

__all__ = ["Result", "Session", "Swap", "check", "setup", "show_source", "swap", "train_or_load"]
