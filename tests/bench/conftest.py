import sys
from pathlib import Path

# The scripts of bench/ are not installed; they find each other because Python puts the folder of
# the script that it runs in front.
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
