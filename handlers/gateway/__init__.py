"""What chat services, provisioners and operators call; it asks the workers by way of the bus."""
