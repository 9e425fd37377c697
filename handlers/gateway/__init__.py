"""What chat services, browsers and model clients call; it asks the workers by way of the bus."""
