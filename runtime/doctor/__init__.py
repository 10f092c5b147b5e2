"""What on this machine keeps the loops from their deadlines, each with the command that mends it. It changes
nothing."""
