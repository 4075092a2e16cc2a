#!/bin/sh
# Prints the first Python that this project runs on. Each candidate is really run, since a name on PATH may be a shim
# for a version that is not there; and asked for ensurepip, since some distributions package it apart.
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        command -v "$candidate"
        exit 0
    fi
done
echo "Python 3.11 or later with its venv module is needed${PYTHON:+, and $PYTHON is not that}." >&2
echo "Install it (Debian, Ubuntu: apt install python3 python3-venv), or name one: make PYTHON=/path/to/python3.11" >&2
exit 1
