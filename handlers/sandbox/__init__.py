"""Shell commands in sessions of their own, and how they are confined: bubblewrap, Landlock, or nothing."""
