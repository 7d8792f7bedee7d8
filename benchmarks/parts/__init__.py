"""One file a part: `cases(quick)` lists what it measures."""
