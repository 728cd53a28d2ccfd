"""Isocenter: one self-hosted server, command line and viewer for medical-imaging AI."""
