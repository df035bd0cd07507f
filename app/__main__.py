"""The command waybill, run as `python -m app`."""

from app.cli import main

main()
