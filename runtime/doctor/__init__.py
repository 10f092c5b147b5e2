"""What on this machine stands in the way of deadlines, and the command that mends each. Looks only; changes nothing."""
