"""Delivery: from the queue to the platform, in order within a lane and parallel between lanes. See `courier`."""
