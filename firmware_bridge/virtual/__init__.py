"""Virtual servos on a byte-level bus, the faults they can have, and the campaign that plays those."""
