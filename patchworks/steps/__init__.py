"""One file per arrow: occupancy, segment, stage, seams, merge, pyramid. None knows another."""
