"""What the world calls: one folder a role on the bus, and the command line that starts them."""
