"""Everybody smiles; then, on top of that generator, heads turn: two prompts, one nested in the other.

python main.py --config=configs/quickstart.py --workdir=runs/quickstart
"""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("pieces", Path(__file__).with_name("pieces.py"))
pieces = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pieces)
