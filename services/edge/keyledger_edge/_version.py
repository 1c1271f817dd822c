"""This library's version, the same as its distribution's."""

VERSION = "0.1.0"
