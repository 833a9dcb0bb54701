"""To read and to run: `python examples/line_fitting.py --out FOLDER`."""
