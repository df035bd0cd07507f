"""python -m app is the command waybill."""

from app.cli import main

main()
